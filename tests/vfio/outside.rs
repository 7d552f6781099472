//! The host's side: a guest is started, and says how its tests went.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rte_net_vhost::testing::dma::IoatModel;

use crate::common::{Contents, Driver, Image, Lab, Outcome, Process, skip};
use crate::device::{GuestMemory, serve};

/// Emulated processors are slow, and the host may be busy.
const PATIENCE: Duration = Duration::from_secs(600);

/// Bits of the addresses that a guest's IOMMU translates.
const WIDE: &str = "48";
const NARROW: &str = "39";

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
mkdir -p /tmp /var/run
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
case $tests in
*::*) /vfio-tests --test-threads=1 --include-ignored "inside::$tests" ;;
*) /traffic "$tests:$DEVICE" ;;
esac
echo "the tests returned $?"
poweroff -f
"#;

/// Runs a program to its end; what it said.
fn run(command: &mut Command) -> Outcome<String> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(text),
        false => {
            let words = String::from_utf8_lossy(&output.stderr);
            Err(format!("{command:?}: {}{text}{words}", output.status).into())
        }
    }
}

/// Files, and their paths in the guest.
type Files = Vec<(PathBuf, PathBuf)>;

/// The libraries that programs need.
fn libraries(programs: &[&Path]) -> Outcome<Files> {
    let text = run(Command::new("ldd").args(programs))?;
    // `name => /path (address)`, or a path alone. Lines that end with a colon name the program.
    let words = text
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'));
    let paths: BTreeSet<&str> = words.collect();
    Ok(paths
        .iter()
        .map(|path| (path.into(), path.into()))
        .collect())
}

/// This very program, without what only a debugger reads.
fn program(lab: &Lab) -> Outcome<Files> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let stripped = lab.path("vfio-tests");
    run(Command::new("strip").arg("-o").arg(&stripped).arg(&own))?;
    let mut files = libraries(&[&own])?;
    files.push((stripped, "/vfio-tests".into()));
    Ok(files)
}

/// `c-tests/engines`, the plugin, and the drivers of DPDK that the two need.
fn traffic(lab: &Lab) -> Outcome<Files> {
    const DRIVERS: [&str; 5] = [
        "bus_vdev",
        "bus_pci",
        "net_virtio",
        "mempool_ring",
        "dma_ioat",
    ];
    let Driver::Plugin(plugin) = Driver::under_test()? else {
        return Err("the stock driver has no engines".into());
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let binary = lab.path("engines");
    let flags = run(Command::new("pkg-config").args(["--cflags", "--libs", "libdpdk"]))?;
    let mut compile = Command::new("cc");
    compile.args(["-O1", "-D_DEFAULT_SOURCE", "-DALLOW_EXPERIMENTAL_API", "-o"]);
    compile.arg(&binary).arg(root.join("c-tests/engines.c"));
    for part in ["check", "dsa", "eal", "frame", "pair", "port"] {
        compile.arg(root.join(format!("c-tests/lib/{part}.c")));
    }
    compile
        .args(flags.split_whitespace())
        .args(["-ldl", "-lpthread"]);
    run(&mut compile)?;
    let folder = run(Command::new("pkg-config").args(["--variable=libdir", "libdpdk"]))?;
    let folder = Path::new(folder.trim());
    let mut preload = Vec::new();
    for driver in DRIVERS {
        let name = format!("librte_{driver}.so");
        // Under the name by which others depend on it, so that it is loaded once.
        let text = run(Command::new("objdump").arg("-p").arg(folder.join(&name)))?;
        let soname = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("SONAME"));
        let soname = soname.ok_or(format!("{name} has no name"))?.trim();
        preload.push(folder.join(soname));
    }
    let mut programs: Vec<&Path> = preload.iter().map(PathBuf::as_path).collect();
    programs.extend([&*binary, &*plugin]);
    let mut files = libraries(&programs)?;
    files.extend(preload.iter().map(|path| (path.clone(), path.clone())));
    let names: Vec<_> = preload
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let script = format!(
        "#!/bin/sh\n\
         export NET_VHOST_PLUGIN=/plugin/librte_net_vhost.so NET_VHOST_SLOW=1\n\
         engines() {{ LD_PRELOAD={} /engines \"$1\"; }}\n\
         case $1 in\n\
         dmadev:*) NET_VHOST_PCI=1 engines \"$1\" ;;\n\
         own:*)\n\
             for NET_VHOST_OWN_CONTAINER in hidden limited narrow; do\n\
                 export NET_VHOST_OWN_CONTAINER\n\
                 engines \"ioat:${{1#own:}}\" || exit\n\
             done ;;\n\
         *) engines \"$1\" ;;\n\
         esac\n",
        names.join(":")
    );
    let starter = lab.path("traffic");
    fs::write(&starter, script).map_err(|error| error.to_string())?;
    run(Command::new("chmod").arg("+x").arg(&starter))?;
    files.push((starter, "/traffic".into()));
    files.push((binary, "/engines".into()));
    files.push((plugin, "/plugin/librte_net_vhost.so".into()));
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
    command.args(["-accel", "tcg", "-cpu", "max", "-m", "1536", "-no-reboot"]);
    command.args(["-machine", "q35,memory-backend=mem,kernel-irqchip=split"]);
    command.args(["-object", "memory-backend-memfd,id=mem,size=1536M,share=on"]);
    for device in devices {
        command.args(["-device", device]);
    }
    command.arg("-kernel").arg(&image.kernel);
    command.arg("-initrd").arg(&image.initramfs);
    let line = format!("console=ttyS0 quiet panic=-1 intel_iommu=on hugepages=240 tests={tests}");
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

fn image(test: &str, lab: &Lab, files: &Files) -> Outcome<Option<Image>> {
    let contents = Contents {
        modules: &MODULES,
        programs: &[],
        files,
        init: INIT,
    };
    Image::with(test, lab, &contents)
}

fn edu_with(test: &str, bits: &str, tests: &str) -> Outcome {
    let lab = Lab::new(test)?;
    let Some(image) = image(test, &lab, &program(&lab)?)? else {
        return Ok(());
    };
    let iommu = format!("intel-iommu,intremap=off,caching-mode=on,aw-bits={bits}");
    let devices = [&iommu, "edu,addr=04.0,dma_mask=0xffffffffffffffff"];
    run_inside(&lab, &image, "qemu-system-x86_64", tests, &devices)?;
    lab.finish()
}

#[test]
fn a_container_of_our_own_works_with_a_wide_iommu() -> Outcome {
    edu_with("vfio-wide", WIDE, "edu::wide")
}

#[test]
fn a_container_of_our_own_works_with_a_narrow_iommu() -> Outcome {
    edu_with("vfio-narrow", NARROW, "edu::narrow")
}

/// Runs tests in a guest with a channel of I/OAT.
fn with_channel(test: &str, tests: &str, bits: &str, files: fn(&Lab) -> Outcome<Files>) -> Outcome {
    let lab = Lab::new(test)?;
    let Some(qemu) = newer_qemu(test)? else {
        return Ok(());
    };
    let Some(image) = image(test, &lab, &files(&lab)?)? else {
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
    let iommu = format!("intel-iommu,intremap=off,caching-mode=on,aw-bits={bits}");

    run_inside(&lab, &image, &qemu, tests, &[&iommu, &channel])?;

    server.join().map_err(|_| "the device's server died")?;
    assert!(model.copies() > 0, "no copy reached the device");
    assert!(memory.count() > 0, "nothing was mapped for it");
    lab.finish()
}

#[test]
fn an_ioat_channel_works_behind_a_real_vfio_and_iommu() -> Outcome {
    with_channel("vfio-ioat", "ioat::", WIDE, program)
}

#[test]
fn a_port_sends_through_an_ioat_channel_in_dpdks_container() -> Outcome {
    with_channel("vfio-port", "ioat", WIDE, traffic)
}

/// EAL finds no VFIO when it starts; its container has no room for all of its memory; the IOMMU is
/// too narrow for its addresses.
#[test]
fn a_port_sends_through_a_container_of_its_own() -> Outcome {
    with_channel("vfio-own", "own", NARROW, traffic)
}

/// The model is also what DPDK's own driver takes for a channel.
#[test]
fn a_port_sends_through_dpdks_own_ioat_driver() -> Outcome {
    with_channel("vfio-dmadev", "dmadev", WIDE, traffic)
}
