//! A Linux guest in QEMU without hardware virtualisation: Debian's kernel, a busybox, one NIC.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::lab::skip;
use super::qmp::Qmp;
use super::{Lab, Outcome, Process};

/// The guest's memory: 256 MB, and a little.
///
/// QEMU 7.2 has two ways to collect the pages that were written during a migration, and the one
/// for memory of whole words of its bitmap (64 pages) forgets to tell the emulated processors, which go on
/// to write such a page unseen: a guest that has moved dies of its own old data now and then.
const MEMORY_KB: u32 = (256 << 10) + 8;

/// Emulated processors are slow, and the host may be busy.
const BOOT: Duration = Duration::from_secs(120);

/// In the order in which they must be inserted; the package has no list of dependencies.
const MODULES: [&str; 8] = [
    "virtio_ring",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
];

/// The kernel's command line.
pub(crate) const PARAMETERS: &str = "console=ttyS0 quiet panic=-1";

/// Programs for the guest, and their sources.
const PROGRAMS: [(&str, &str); 3] = [
    ("channels", include_str!("channels.c")),
    ("gso-marks", include_str!("gso_marks.c")),
    ("held", include_str!("held.c")),
];

/// The guest's first process. It serves commands from the second serial port, on which it says
/// `READY` after each boot. (`read` would lose the beginning of a line when a process in the background
/// ends or pauses meanwhile: the signal makes it begin anew.)
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in $(cat /modules/order); do insmod "/modules/$module.ko"; done
ip link set lo up
stty -F /dev/ttyS1 raw -echo
exec </dev/ttyS1 >/dev/ttyS1 2>&1
echo READY
while line=$(head -n 1); do eval "$line"; done
"#;

/// A kernel and an initial file system.
pub(crate) struct Image {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
}

/// What is in the initial file system beside a busybox.
pub(crate) struct Contents<'c> {
    /// Kernel modules, in the order in which they are inserted.
    pub(crate) modules: &'c [&'c str],
    /// C programs: a name, and the source.
    pub(crate) programs: &'c [(&'c str, &'c str)],
    /// Files, and their paths in the guest.
    pub(crate) files: &'c [(PathBuf, PathBuf)],
    /// The first process.
    pub(crate) init: &'c str,
}

const CONTENTS: Contents<'_> = Contents {
    modules: &MODULES,
    programs: &PROGRAMS,
    files: &[],
    init: INIT,
};

/// Why there is no [`Image`]: the distribution cannot give one here, or something failed.
enum NoImage {
    /// A reason to skip.
    Unavailable(String),
    /// A reason to fail.
    Failed(String),
}

impl Image {
    /// The guest's files; `None` when the test is to be skipped, which is noted.
    pub(crate) fn for_test(test: &str, lab: &Lab) -> Outcome<Option<Self>> {
        Self::with(test, lab, &CONTENTS)
    }

    /// The same with other contents.
    pub(crate) fn with(test: &str, lab: &Lab, contents: &Contents<'_>) -> Outcome<Option<Self>> {
        match Self::make(lab, contents) {
            Ok(image) => Ok(Some(image)),
            Err(NoImage::Unavailable(reason)) => {
                skip(test, &reason);
                Ok(None)
            }
            Err(NoImage::Failed(reason)) => Err(reason.into()),
        }
    }

    /// Downloads the kernel's package, unless it lies in cargo's target folder, and packs the guest.
    fn make(lab: &Lab, contents: &Contents<'_>) -> Result<Self, NoImage> {
        let store = lab.target_folder().join("guest");
        let package = kernel_package().map_err(NoImage::Unavailable)?;
        let unpacked = store.join(&package);
        if !unpacked.join("boot").is_dir() {
            download(&store, &package, &unpacked).map_err(NoImage::Unavailable)?;
        }
        Self::pack(lab, &unpacked, contents).map_err(NoImage::Failed)
    }

    fn pack(lab: &Lab, package: &Path, contents: &Contents<'_>) -> Result<Self, String> {
        let find = |arguments: &[&str]| -> Result<PathBuf, String> {
            let found = shell(&package.display().to_string(), "find", arguments)?;
            let first = found
                .lines()
                .next()
                .ok_or(format!("no {arguments:?} in the package"))?;
            Ok(package.join(first))
        };
        let root = lab.path("root");
        for folder in ["bin", "modules", "proc", "sys", "dev"] {
            fs::create_dir_all(root.join(folder)).map_err(|error| format!("{folder}: {error}"))?;
        }
        let busybox = ["/usr/bin/busybox", "/bin/busybox"]
            .iter()
            .find(|path| Path::new(path).exists());
        let busybox = busybox.ok_or("busybox is not installed")?;
        let copy = |from: &Path, to: &str| {
            let copied = fs::copy(from, root.join(to));
            copied.map_err(|error| format!("{}: {error}", from.display()))
        };
        copy(Path::new(busybox), "bin/busybox")?;
        for module in contents.modules {
            // Debian 12 does not compress them, later releases do.
            let file = find(&[".", "-name", &format!("{module}.ko*")])?;
            let name = file
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            copy(&file, &format!("modules/{name}"))?;
            if name.ends_with(".xz") {
                shell(
                    &root.join("modules").display().to_string(),
                    "xz",
                    &["-d", &name],
                )?;
            }
        }
        let write = |name: &str, text: &str| {
            fs::write(root.join(name), text).map_err(|error| format!("{name}: {error}"))
        };
        for (name, source) in contents.programs {
            let file = format!("{name}.c");
            write(&file, source)?;
            let output = format!("bin/{name}");
            let flags = ["-static", "-O1", "-o", &output, &file];
            shell(&root.display().to_string(), "gcc", &flags)?;
        }
        for (file, path) in contents.files {
            let path = path.strip_prefix("/").unwrap_or(path);
            let folder = root.join(path.parent().unwrap_or(Path::new("")));
            fs::create_dir_all(&folder)
                .map_err(|error| format!("{}: {error}", folder.display()))?;
            copy(file, &path.display().to_string())?;
        }
        write("modules/order", &contents.modules.join(" "))?;
        write("init", contents.init)?;
        let root = root.display().to_string();
        let pack = "chmod +x init && find . | cpio --quiet -o -H newc > ../initramfs";
        shell(&root, "sh", &["-c", pack])?;
        Ok(Self {
            kernel: find(&["boot", "-name", "vmlinuz-*"])?,
            initramfs: lab.path("initramfs"),
        })
    }
}

/// The name of the package with Debian's current kernel for virtual machines.
fn kernel_package() -> Result<String, String> {
    let depends = || shell("/", "apt-cache", &["depends", "linux-image-cloud-amd64"]);
    let answer = depends().map_err(|_| "no Debian kernel package is known to apt here")?;
    let mut names = answer
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(names
        .next()
        .ok_or("linux-image-cloud-amd64 depends on no kernel")?
        .to_owned())
}

fn download(store: &Path, package: &str, unpacked: &Path) -> Result<(), String> {
    fs::create_dir_all(store).map_err(|error| format!("{}: {error}", store.display()))?;
    let store = store.display().to_string();
    shell(&store, "apt-get", &["download", package])
        .map_err(|error| format!("the guest's kernel cannot be downloaded: {error}"))?;
    // Unpacked aside and then renamed, so that half a package is never taken for a whole one.
    let script = format!(
        "rm -rf part && dpkg-deb -x {package}_*.deb part && rm {package}_*.deb && mv part {}",
        unpacked.display()
    );
    shell(&store, "sh", &["-c", &script]).map(|_| ())
}

/// Runs a short program in a folder and returns its output.
fn shell(folder: &str, program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {arguments:?}: {}", words.trim()))
}

/// How QEMU is connected to the backend, and what its NIC offers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    /// Options of the socket's chardev, beginning with a comma.
    pub(crate) socket: &'static str,
    /// Options of the NIC, beginning with a comma.
    pub(crate) nic: &'static str,
    /// Queue pairs, and processors.
    pub(crate) queues: u16,
    /// What the NIC's addresses go through.
    pub(crate) iommu: Iommu,
}

/// What is between a NIC and the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Iommu {
    /// Nothing.
    Absent,
    /// An IOMMU, for which each buffer gets an address of its own, for as long as it is in use.
    Strict,
    /// The same, but addresses are given up many at a time, as Linux does by itself.
    Lazy,
    /// An IOMMU that leaves addresses as they are.
    PassThrough,
}

impl Machine {
    /// One queue, all that QEMU offers by default; the backend listens.
    pub(crate) const PLAIN: Self = Self {
        socket: "",
        nic: "",
        queues: 1,
        iommu: Iommu::Absent,
    };
}

/// A NIC of a guest with several, or of one guest among several.
#[derive(Clone, Debug)]
pub(crate) struct Nic {
    /// The socket's file in the test's folder.
    pub(crate) file: String,
    /// The last byte of its MAC address.
    pub(crate) mac: u8,
    /// The rest.
    pub(crate) machine: Machine,
}

/// A running guest.
pub(crate) struct Guest {
    process: Process,
    qmp: Qmp,
    console: PathBuf,
    commands: u32,
    booted: usize,
}

/// What the guest's kernel is told of its IOMMU.
fn iommu_parameters(nics: &[Nic]) -> &'static str {
    // One for the whole machine.
    match nics.first().map(|nic| nic.machine.iommu) {
        Some(Iommu::Strict) => " intel_iommu=on iommu.passthrough=0 iommu.strict=1",
        Some(Iommu::Lazy) => " intel_iommu=on iommu.passthrough=0 iommu.strict=0",
        Some(Iommu::PassThrough) => " intel_iommu=on iommu=pt",
        Some(Iommu::Absent) | None => "",
    }
}

impl Guest {
    /// Starts QEMU; the guest's NIC is at the lab's socket `s`. Does not wait for the boot.
    pub(crate) fn spawn(lab: &Lab, image: &Image, machine: &Machine) -> Outcome<Self> {
        let nic = Nic {
            file: "s".to_owned(),
            mac: 0x10,
            machine: *machine,
        };
        Self::spawn_with(lab, image, "qemu", &[nic])
    }

    /// Starts one of several guests, or one with several NICs: `eth0`, `eth1`, …
    pub(crate) fn spawn_with(lab: &Lab, image: &Image, name: &str, nics: &[Nic]) -> Outcome<Self> {
        Self::start(lab, name, nics, Self::direct(image, nics))
    }

    /// A QEMU that boots the image without firmware.
    fn direct(image: &Image, nics: &[Nic]) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command.arg("-kernel").arg(&image.kernel);
        command.arg("-initrd").arg(&image.initramfs);
        let append = format!("{PARAMETERS}{}", iommu_parameters(nics));
        command.args(["-append", &append]);
        command
    }

    /// Starts QEMU without a guest: one will come from another QEMU with the same NICs.
    pub(crate) fn spawn_incoming(
        lab: &Lab,
        image: &Image,
        name: &str,
        nics: &[Nic],
    ) -> Outcome<Self> {
        let mut command = Self::direct(image, nics);
        command.args(["-incoming", "defer"]);
        command.args(["-trace", "postcopy_request_shared_page"]);
        Self::start(lab, name, nics, command)
    }

    /// Waits until QEMU has written this to its standard error.
    pub(crate) fn wait_for_log(&self, text: &str) -> Outcome {
        let stderr = &self.process.stderr;
        stderr.wait_for(text, 0, super::SOON).map(|_| ())
    }

    /// Starts one that boots from the network: by the firmware of a NIC with a `bootindex`.
    pub(crate) fn spawn_from_network(lab: &Lab, name: &str, nics: &[Nic]) -> Outcome<Self> {
        Self::start(lab, name, nics, Command::new("qemu-system-x86_64"))
    }

    fn start(lab: &Lab, name: &str, nics: &[Nic], mut command: Command) -> Outcome<Self> {
        let processors = nics.iter().map(|nic| nic.machine.queues).max();
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-accel", "tcg", "-cpu", "max"]);
        // Room for more, while it runs.
        command.args(["-m", &format!("{MEMORY_KB}K,slots=4,maxmem=2G")]);
        command.args(["-smp", &processors.unwrap_or(1).to_string()]);
        if iommu_parameters(nics).is_empty() {
            command.args(["-machine", "pc,memory-backend=mem"]);
        } else {
            command.args(["-machine", "q35,memory-backend=mem"]);
            // Before the NICs, or they do not go through it.
            command.args(["-device", "intel-iommu,intremap=off,device-iotlb=on"]);
        }
        let memory = format!("memory-backend-memfd,id=mem,size={MEMORY_KB}K,share=on");
        command.args(["-object", &memory]);
        let console = lab.log_path(&format!("{name}.console"));
        command.args(["-serial", &format!("file:{}", console.display())]);
        command.args([
            "-chardev",
            "stdio,id=commands,signal=off",
            "-serial",
            "chardev:commands",
        ]);
        let qmp = Qmp::new(lab.path(&format!("{name}.qmp")));
        command.args([
            "-qmp",
            &format!("unix:{},server=on,wait=off", qmp.path().display()),
        ]);
        for (id, nic) in nics.iter().enumerate() {
            let Machine {
                socket,
                nic: options,
                queues,
                iommu,
            } = nic.machine;
            let path = lab.path_text(&nic.file);
            let chardev = format!("socket,id=vhost{id},path={path}{socket}");
            command.args(["-chardev", &chardev]);
            let netdev = format!("vhost-user,id=net{id},chardev=vhost{id},queues={queues}");
            command.args(["-netdev", &netdev]);
            // QEMU 7.2 without KVM dies when the driver of a vhost-user NIC uses MSI-X.
            let many = if queues > 1 { ",mq=on" } else { "" };
            let mac = format!("52:54:00:00:00:{:02x}", nic.mac);
            // Its firmware only costs time, unless the machine is to boot from it.
            let boots = options.contains("bootindex");
            let firmware = if boots { "" } else { ",romfile=" };
            let device = format!("virtio-net-pci,netdev=net{id},mac={mac},vectors=0{firmware}");
            let lazy = iommu == Iommu::Lazy;
            let iommu = match iommu {
                Iommu::Absent => "",
                _ => ",disable-legacy=on,iommu_platform=on,ats=on",
            };
            let bus = if lazy {
                // Only there a NIC is a PCI Express device and has ATS, without which QEMU 7.2 does not tell
                // a backend of a driver's flushes.
                let port = format!("pcie-root-port,id=port{id},chassis={id},slot={id}");
                command.args(["-device", &port]);
                format!(",bus=port{id}")
            } else {
                String::new()
            };
            command.args(["-device", &format!("{device}{many}{iommu}{bus}{options}")]);
        }
        Ok(Self {
            process: Process::spawn(lab, name, command)?,
            qmp,
            console,
            commands: 0,
            booted: 0,
        })
    }

    /// Waits until it has booted, for the first time or once more.
    pub(crate) fn wait_for_boot(&mut self) -> Outcome {
        let ready = self.process.stdout.wait_for("READY", self.booted, BOOT);
        self.booted = ready.map_err(|error| format!("{error}{}", self.process.stderr.tail()))?;
        Ok(())
    }

    /// Runs a shell command in the guest, which must succeed; returns its output.
    pub(crate) fn run(&mut self, command: &str) -> Outcome<String> {
        self.commands += 1;
        let end = format!("END-{}-", self.commands);
        let mark = self.process.stdout.mark();
        self.process
            .write_line(&format!("{command}; echo {end}$?."))?;
        let (text, status) =
            self.process
                .stdout
                .wait_until(&format!("the end of `{command}`"), BOOT, |text| {
                    let (text, rest) = text[mark..].split_once(&end)?;
                    let (status, _) = rest.split_once('.')?;
                    Some((text.to_owned(), status.to_owned()))
                })?;
        match status.as_str() {
            // The end of the line before may come late.
            "0" => Ok(text.trim_start_matches('\n').to_owned()),
            // A terminal that was never set up repeats what it is told.
            "$?" => Err(format!(
                "the guest rebooted before `{command}`. Its console:\n{}",
                self.console_tail()
            )
            .into()),
            _ => Err(format!("in the guest, `{command}` returned {status}:\n{text}").into()),
        }
    }

    /// The last lines of the guest's kernel.
    fn console_tail(&self) -> String {
        let text = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.iter().skip(lines.len().saturating_sub(60));
        last.map(|line| format!("    | {line}\n")).collect()
    }

    /// Did its driver accept this feature bit?
    pub(crate) fn has_feature(&mut self, bit: usize) -> Outcome<bool> {
        Ok(self.features("eth0")?.contains(&bit))
    }

    /// The feature bits that the driver of a NIC accepted.
    pub(crate) fn features(&mut self, nic: &str) -> Outcome<Vec<usize>> {
        let bits = self.run(&format!("cat /sys/class/net/{nic}/device/features"))?;
        let bits = bits.trim().bytes().enumerate();
        Ok(bits
            .filter(|(_, set)| *set == b'1')
            .map(|(bit, _)| bit)
            .collect())
    }

    /// Sets its address to 10.0.0.2 and pings 10.0.0.1 until the first answer.
    pub(crate) fn reach_the_backend(&mut self) -> Outcome {
        self.run("ip addr replace 10.0.0.2/24 dev eth0; ip link set eth0 up")?;
        self.reach("10.0.0.1")
    }

    /// Pings an address until the first answer.
    pub(crate) fn reach(&mut self, address: &str) -> Outcome {
        let ping = format!("ping -c 1 -W 1 {address}");
        self.run(&format!(
            "n=0; until {ping} || [ $n = 60 ]; do n=$((n+1)); done; [ $n != 60 ]"
        ))
        .map(|_| ())
    }

    /// Pings the backend with packets of some size; none may be lost.
    pub(crate) fn ping(&mut self, count: u32, size: u32) -> Outcome {
        let ping = format!("ping -q -i 0.02 -c {count} -s {size} -W 5 10.0.0.1");
        let text = self.run(&ping)?;
        match text.contains(" 0% packet loss") {
            true => Ok(()),
            false => Err(format!("{ping}:\n{text}").into()),
        }
    }

    /// Reboots it from inside, without warning to the backend.
    pub(crate) fn reboot(&mut self) -> Outcome {
        self.begin_reboot()?;
        self.wait_for_boot()
    }

    /// The same, without waiting.
    pub(crate) fn begin_reboot(&mut self) -> Outcome {
        self.process.write_line("reboot -f")
    }

    /// Runs a command of QEMU's own protocol.
    pub(crate) fn qmp(&self, command: &str) -> Outcome {
        self.qmp_with(command, "{}").map(|_| ())
    }

    /// Runs a command with arguments, in JSON; returns the answer.
    pub(crate) fn qmp_with(&self, command: &str, arguments: &str) -> Outcome<String> {
        self.qmp.run(command, arguments)
    }

    /// Resets it as the button of a machine would.
    pub(crate) fn reset(&mut self) -> Outcome {
        self.booted = self.process.stdout.mark();
        self.qmp("system_reset")?;
        self.wait_for_boot()
    }

    /// Ends QEMU in order.
    pub(crate) fn quit(mut self) -> Outcome {
        if let Err(error) = self.qmp("quit") {
            let how = self.process.wait(Duration::from_secs(1));
            return Err(format!("{error}; its process: {how:?}").into());
        }
        self.process.wait_success(super::SOON)
    }

    /// Ends QEMU with SIGKILL.
    pub(crate) fn kill(mut self) {
        self.process.kill();
    }
}
