//! The host's side: a guest is started, and says how its tests went.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rte_net_vhost::testing::dma::IoatModel;

use crate::common::{Contents, Image, Lab, Outcome, Process, skip};
use crate::device::{GuestMemory, serve};

/// Emulated processors are slow, and the host may be busy.
const PATIENCE: Duration = Duration::from_secs(400);

/// In the order in which they must be inserted.
const MODULES: [&str; 6] = [
    "irqbypass",
    "vfio",
    "vfio_virqfd",
    "vfio_iommu_type1",
    "vfio-pci-core",
    "vfio-pci",
];

/// Takes the device from whoever has it, and runs the tests. `TESTS` is on the kernel's command line.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mkdir -p /tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
# Interrupts are not used; those of this emulated IOMMU cannot be remapped.
for module in $(cat /modules/order); do
    case $module in
    vfio_iommu_type1) insmod "/modules/$module.ko" allow_unsafe_interrupts=1 ;;
    *) insmod "/modules/$module.ko" ;;
    esac
done
for device in /sys/bus/pci/devices/*; do
    case $(cat "$device/vendor"):$(cat "$device/device") in
    0x8086:0x0b00 | 0x1234:0x11e8)
        export DEVICE=${device##*/}
        echo vfio-pci >"$device/driver_override"
        echo "$DEVICE" >/sys/bus/pci/drivers_probe
        ;;
    esac
done
for word in $(cat /proc/cmdline); do
    case $word in tests=*) tests=${word#tests=} ;; esac
done
echo "device $DEVICE, tests $tests"
/vfio-tests --test-threads=1 --include-ignored "inside::$tests"
echo "the tests returned $?"
poweroff -f
"#;

/// This very program, without what only a debugger reads, and the libraries that it needs.
fn program(lab: &Lab) -> Outcome<Vec<(PathBuf, PathBuf)>> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let stripped = lab.path("vfio-tests");
    let run = |command: &mut Command| -> Outcome<String> {
        let output = command
            .output()
            .map_err(|error| format!("{command:?}: {error}"))?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(format!("{command:?}: {:?}", output.status).into()),
        }
    };
    run(Command::new("strip").arg("-o").arg(&stripped).arg(&own))?;
    let libraries = run(Command::new("ldd").arg(&own))?;
    let paths = libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    let mut files: Vec<_> = paths.map(|path| (path.into(), path.into())).collect();
    files.push((stripped, "/vfio-tests".into()));
    Ok(files)
}

/// A QEMU that knows vfio-user; `None` when there is none for this machine, which is noted.
fn newer_qemu(test: &str) -> Outcome<Option<String>> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/.ci/newer-qemu.sh");
    let output = Command::new(script).output();
    let output = output.map_err(|error| format!("{script}: {error}"))?;
    if output.status.code() == Some(77) {
        skip(test, "no QEMU with vfio-user can be fetched here");
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().last() {
        Some(line) if output.status.success() => Ok(Some(line.to_owned())),
        _ => Err(format!("{script}: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

/// Boots a guest with these devices, which runs the tests below `inside::tests` and ends.
fn run_inside(lab: &Lab, image: &Image, qemu: &str, tests: &str, devices: &[&str]) -> Outcome {
    let mut command = Command::new(qemu);
    command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
    command.args(["-accel", "tcg", "-cpu", "max", "-m", "512", "-no-reboot"]);
    command.args(["-machine", "q35,memory-backend=mem,kernel-irqchip=split"]);
    command.args(["-object", "memory-backend-memfd,id=mem,size=512M,share=on"]);
    for device in devices {
        command.args(["-device", device]);
    }
    command.arg("-kernel").arg(&image.kernel);
    command.arg("-initrd").arg(&image.initramfs);
    let line = format!("console=ttyS0 quiet panic=-1 intel_iommu=on tests={tests}");
    command.args(["-append", &line, "-serial", "stdio"]);
    let mut guest = Process::spawn(lab, "qemu", command)?;
    let end = guest
        .stdout
        .wait_until("the end of the guest's tests", PATIENCE, |text| {
            let (_, end) = text.split_once("the tests returned ")?;
            let (status, _) = end.split_once(['\r', '\n'])?;
            Some((text.to_owned(), status == "0"))
        });
    let (text, succeeded) = end.map_err(|error| format!("{error}\n{}", guest.stderr.tail()))?;
    guest.wait_success(PATIENCE)?;
    match succeeded && !text.contains(" 0 passed") {
        true => Ok(()),
        false => Err(text.into()),
    }
}

fn image(test: &str, lab: &Lab) -> Outcome<Option<Image>> {
    let files = program(lab)?;
    let contents = Contents {
        modules: &MODULES,
        programs: &[],
        files: &files,
        init: INIT,
    };
    Image::with(test, lab, &contents)
}

fn edu_with(test: &str, iommu: &str, tests: &str) -> Outcome {
    let lab = Lab::new(test)?;
    let Some(image) = image(test, &lab)? else {
        return Ok(());
    };
    let iommu = format!("intel-iommu,intremap=off,caching-mode=on,{iommu}");
    let devices = [&iommu, "edu,addr=04.0,dma_mask=0xffffffffffffffff"];
    run_inside(&lab, &image, "qemu-system-x86_64", tests, &devices)?;
    lab.finish()
}

#[test]
fn a_container_of_our_own_works_with_a_wide_iommu() -> Outcome {
    edu_with("vfio-wide", "aw-bits=48", "edu::wide")
}

#[test]
fn a_container_of_our_own_works_with_a_narrow_iommu() -> Outcome {
    edu_with("vfio-narrow", "aw-bits=39", "edu::narrow")
}

#[test]
fn an_ioat_channel_works_behind_a_real_vfio_and_iommu() -> Outcome {
    let test = "vfio-ioat";
    let lab = Lab::new(test)?;
    let Some(qemu) = newer_qemu(test)? else {
        return Ok(());
    };
    let Some(image) = image(test, &lab)? else {
        return Ok(());
    };
    let memory = GuestMemory::default();
    let model = IoatModel::new(&memory);
    let socket = lab.path("device");
    let server = serve(&socket, model.clone(), memory.clone())?;
    let path = lab.path_text("device");
    let channel = format!(
        r#"{{"driver":"vfio-user-pci","addr":"04.0","socket":{{"type":"unix","path":"{path}"}}}}"#
    );
    let devices = [
        "intel-iommu,intremap=off,caching-mode=on,aw-bits=48",
        &channel,
    ];

    run_inside(&lab, &image, &qemu, "ioat", &devices)?;

    server.join().map_err(|_| "the device's server died")?;
    assert!(model.copies() > 0, "no copy reached the device");
    assert!(memory.count() > 100, "{} maps", memory.count());
    lab.finish()
}
