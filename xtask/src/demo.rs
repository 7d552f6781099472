//! `cargo xtask demo`: the product's main job, for a newcomer's eyes.

use std::time::{Duration, Instant};

use crate::command::{capture, cargo, interrupted, run, target};
use crate::common::{Backend, Driver, Frontend, Lab, Memory, Outcome, PortStats, Testpmd, pair};
use crate::{number_option, setup};

/// Builds the plugin, connects two testpmd through it and shows the packets flow.
pub(crate) fn demo(args: &[String]) -> Outcome {
    let seconds = number_option(args, "--seconds", 8)?;
    setup::machine()?;
    let driver = built_driver()?;
    let lab = Lab::new("demo")?;
    println!();
    match &driver {
        Driver::Stock => println!("driver    the distribution's net_vhost"),
        Driver::Plugin(path) => println!("driver    {}", path.display()),
    }
    let version = capture("pkg-config", &["--modversion", "libdpdk"]).unwrap_or_default();
    println!("backend   dpdk-testpmd {}, port net_vhost0", version.trim());
    println!("frontend  dpdk-testpmd, port net_virtio_user0");
    println!("socket    {}", lab.path_text("s"));
    println!(
        "memory    {}",
        match lab.memory {
            Memory::HugePages => "2 MB pages",
            Memory::Ordinary => "ordinary pages (--no-huge)",
        }
    );
    println!();
    // A processor for each: both on one would only ever wait for each other.
    let backend = Backend {
        pinned: Some(0),
        ..Backend::server(&driver, 1)
    };
    let frontend = Frontend {
        devargs: ",queue_size=1024",
        pinned: Some(1),
        ..Frontend::client(1)
    };
    let (mut back, mut front) = pair(&lab, &backend, &frontend)?;
    serves(&driver, &mut back)?;
    let mut events = Events::default();
    events.print(&back);

    let before = back.stats(0)?;
    // Enough packets on their way to keep both sides busy while one of them waits for a processor.
    for testpmd in [&mut front, &mut back] {
        testpmd.run("set fwd io retry")?;
        testpmd.run("start tx_first 24")?;
    }
    println!("      s    from the frontend      to the frontend");
    let started = Instant::now();
    let mut last = (started, back.stats(0)?);
    for second in 1..=seconds {
        let due = started + Duration::from_secs(u64::from(second));
        while Instant::now() < due && !interrupted() {
            std::thread::sleep(Duration::from_millis(20));
        }
        events.print(&back);
        let now = (Instant::now(), back.stats(0)?);
        print_rates(second, last, now);
        last = now;
        if interrupted() {
            break;
        }
    }
    let after = last.1;
    let received = after.rx_packets - before.rx_packets;
    let sent = after.tx_packets - before.tx_packets;
    let other_side = front.stats(0)?;

    front.quit()?;
    back.wait_for_link(0, false)?;
    events.print(&back);
    back.quit()?;
    lab.finish()?;

    println!();
    println!("received from the frontend  {received:>12} packets");
    println!("sent to the frontend        {sent:>12} packets");
    println!(
        "the frontend received       {:>12} packets",
        other_side.rx_packets
    );
    println!(
        "the frontend sent           {:>12} packets",
        other_side.tx_packets
    );
    // The 4 bursts of the start alone would show one direction only.
    let both_ways = [received, sent, other_side.rx_packets, other_side.tx_packets];
    if both_ways.iter().any(|&packets| packets < 1000) {
        return Err("packets did not flow in both directions".into());
    }
    println!("Packets flowed in both directions. Link and queue events came. All is cleaned up.");
    events.check()
}

/// The driver that `NET_VHOST_PLUGIN` names, or the plugin, freshly built for speed.
pub(crate) fn built_driver() -> Outcome<Driver> {
    if std::env::var_os("NET_VHOST_PLUGIN").is_some() {
        return Driver::under_test();
    }
    println!("building the plugin: cargo build --release");
    let built = run(cargo(&["build", "--release"]), Duration::from_secs(3600))?;
    if !built.success {
        return Err("the plugin does not build".into());
    }
    Driver::plugin(&target().join("release/librte_net_vhost.so"))
}

/// Both drivers have the same name; only the process's threads and mappings tell them apart.
pub(crate) fn serves(driver: &Driver, back: &mut Testpmd) -> Outcome {
    if driver.is_stock() || back.runs_the_plugin(driver)? {
        return Ok(());
    }
    Err("the port is served by the distribution's net_vhost, not by the plugin".into())
}

fn print_rates(second: u32, last: (Instant, PortStats), now: (Instant, PortStats)) {
    let seconds = (now.0 - last.0).as_secs_f64();
    let rate = |before: u64, after: u64| (after - before) as f64 / seconds / 1e6;
    println!(
        "    {second:>3}        {:>6.2} Mpps          {:>6.2} Mpps",
        rate(last.1.rx_packets, now.1.rx_packets),
        rate(last.1.tx_packets, now.1.tx_packets)
    );
}

/// testpmd's lines `Port 0: link state change event`, each shown once.
#[derive(Default)]
struct Events {
    seen: usize,
    link: usize,
    queue: usize,
}

impl Events {
    fn print(&mut self, testpmd: &Testpmd) {
        let events = testpmd.events().split_off(self.seen);
        self.seen += events.len();
        for alike in events.chunk_by(|one, next| one == next) {
            let event = &alike[0];
            match alike.len() {
                1 => println!("event     {event}"),
                times => println!("event     {event}, {times} times"),
            }
            if event.contains("link state") {
                self.link += alike.len();
            } else if event.contains("queue state") {
                self.queue += alike.len();
            }
        }
    }

    /// One queue pair coming up and a link that came and went.
    fn check(&self) -> Outcome {
        if self.link >= 2 && self.queue >= 2 {
            return Ok(());
        }
        let Self { link, queue, .. } = self;
        Err(
            format!("events are missing: {link} of the link, {queue} of queues, expected 2 each")
                .into(),
        )
    }
}
