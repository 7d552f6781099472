//! The life of a port as stock testpmd drives it: devargs, socket file, attach and detach.
#![cfg(feature = "dpdk")]

mod common;

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use common::{Backend, Driver, Frontend, Lab, Outcome, PortStats, Testpmd, pair};

/// A testpmd that knows the driver and has no port yet.
fn without_ports(lab: &Lab, driver: &Driver) -> Outcome<Testpmd> {
    Testpmd::start(lab, "backend", &driver.eal_args(), &[])
}

fn attach(testpmd: &mut Testpmd, device: &str) -> Outcome {
    let answer = testpmd.run(&format!("port attach {device}"))?;
    match answer.contains("is attached. Now total ports is") {
        true => Ok(()),
        false => Err(format!("not attached: {device}\n{answer}{}", testpmd.log()).into()),
    }
}

fn is_socket(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|data| data.file_type().is_socket())
}

#[test]
fn ports_come_and_go_while_testpmd_runs() -> Outcome {
    let lab = Lab::new("attach-detach")?;
    let driver = Driver::under_test()?;
    let mut back = without_ports(&lab, &driver)?;
    let device = format!("net_vhost0,iface={},queues=1", lab.path_text("s"));
    for _ in 0..3 {
        attach(&mut back, &device)?;
        back.run("port start 0")?;
        lab.wait_for_file(&lab.path("s"))?;
        let mut front = Frontend::client(1).start(&lab)?;
        back.wait_for_link(0, true)?;
        front.run("start")?;
        let before = back.stats(0)?;
        back.run("start tx_first 4")?;
        back.wait_for_packets(0, before, 10_000)?;
        back.run("stop")?;
        back.run("port stop 0")?;
        let answer = back.run("port detach 0")?;
        assert!(answer.contains("is detached"), "{answer}");
        assert!(!lab.path("s").exists(), "the socket outlived its port");
        // virtio-user cannot end in order without its backend.
        front.kill();
    }
    back.quit()?;
    lab.finish()
}

#[test]
fn the_other_ports_go_on_when_one_is_detached() -> Outcome {
    let lab = Lab::new("detach-one")?;
    let driver = Driver::under_test()?;
    let (mut back, mut front) = pair(&lab, &Backend::server(&driver, 1), &Frontend::client(1))?;
    let device = format!("net_vhost1,iface={},queues=1", lab.path_text("t"));
    attach(&mut back, &device)?;
    back.run("port start 1")?;
    lab.wait_for_file(&lab.path("t"))?;
    back.run("port stop 1")?;
    back.run("port detach 1")?;
    assert!(!lab.path("t").exists(), "the socket outlived its port");
    front.run("start")?;
    back.run("start tx_first 4")?;
    back.wait_for_packets(0, PortStats::default(), 10_000)?;
    front.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn the_alias_eth_vhost_names_the_same_driver() -> Outcome {
    let lab = Lab::new("alias")?;
    let driver = Driver::under_test()?;
    let mut back = without_ports(&lab, &driver)?;
    attach(
        &mut back,
        &format!("eth_vhost7,iface={}", lab.path_text("s")),
    )?;
    let info = back.run("show port info 0")?;
    assert!(info.contains("Driver name: net_vhost"), "{info}");
    back.quit()?;
    lab.finish()
}

#[test]
fn the_socket_is_there_from_configure_to_close() -> Outcome {
    let lab = Lab::new("socket-life")?;
    let driver = Driver::under_test()?;
    let mut back = without_ports(&lab, &driver)?;
    let socket = lab.path("s");
    attach(
        &mut back,
        &format!("net_vhost0,iface={}", lab.path_text("s")),
    )?;
    assert!(!socket.exists(), "there before configure");
    back.run("port start 0")?;
    assert!(is_socket(&socket), "not there after configure");
    back.run("port stop 0")?;
    assert!(is_socket(&socket), "gone after stop");
    back.run("port close 0")?;
    assert!(!socket.exists(), "still there after close");
    back.quit()?;
    lab.finish()
}

#[test]
fn a_missing_folder_fails_the_configuration_but_not_the_probe() -> Outcome {
    let lab = Lab::new("no-folder")?;
    let driver = Driver::under_test()?;
    let mut back = without_ports(&lab, &driver)?;
    let socket = lab.path_text("later/s");
    attach(&mut back, &format!("net_vhost0,iface={socket}"))?;
    back.run("port start 0")?;
    back.wait_for_log(&socket)?;
    fs::create_dir(lab.path("later")).map_err(|error| error.to_string())?;
    back.run("port start 0")?;
    assert!(is_socket(&lab.path("later/s")), "{}", back.log());
    back.run("port stop 0")?;
    back.run("port close 0")?;
    back.quit()?;
    lab.finish()
}

#[test]
fn our_driver_serves_the_port_when_both_are_loaded() -> Outcome {
    let Some(driver) = common::ours_only("our_driver_serves_the_port_when_both_are_loaded")? else {
        return Ok(());
    };
    let lab = Lab::new("who-serves")?;
    let back = Backend::server(&driver, 1).start(&lab)?;
    assert!(back.runs_the_plugin(&driver)?);
    back.quit()?;
    lab.finish()
}

#[test]
fn our_driver_replaces_a_stale_socket() -> Outcome {
    let Some(driver) = common::ours_only("our_driver_replaces_a_stale_socket")? else {
        return Ok(());
    };
    let lab = Lab::new("stale")?;
    // A killed server leaves its socket.
    Backend::server(&driver, 1).start(&lab)?.kill();
    assert!(is_socket(&lab.path("s")));
    let (back, front) = pair(&lab, &Backend::server(&driver, 1), &Frontend::client(1))?;
    front.quit()?;
    back.quit()?;
    lab.finish()
}

#[test]
fn our_driver_does_not_delete_a_file_that_is_no_socket() -> Outcome {
    let Some(driver) = common::ours_only("our_driver_does_not_delete_a_file_that_is_no_socket")?
    else {
        return Ok(());
    };
    let lab = Lab::new("plain-file")?;
    let path = lab.path("s");
    fs::write(&path, "precious").map_err(|error| error.to_string())?;
    let mut back = without_ports(&lab, &driver)?;
    attach(&mut back, &format!("net_vhost0,iface={}", path.display()))?;
    for _ in 0..2 {
        back.run("port start 0")?;
        assert_eq!(fs::read_to_string(&path).ok().as_deref(), Some("precious"));
    }
    back.wait_for_log(&path.display().to_string())?;
    back.run("port close 0")?;
    back.quit()?;
    assert_eq!(fs::read_to_string(&path).ok().as_deref(), Some("precious"));
    lab.finish()
}

#[test]
fn our_driver_leaves_a_socket_that_somebody_serves() -> Outcome {
    let Some(driver) = common::ours_only("our_driver_leaves_a_socket_that_somebody_serves")? else {
        return Ok(());
    };
    let lab = Lab::new("served")?;
    let path = lab.path("s");
    let other = UnixListener::bind(&path).map_err(|error| error.to_string())?;
    let mut back = without_ports(&lab, &driver)?;
    attach(&mut back, &format!("net_vhost0,iface={}", path.display()))?;
    back.run("port start 0")?;
    back.run("port close 0")?;
    back.quit()?;
    assert!(is_socket(&path), "the socket of another server was removed");
    drop(other);
    fs::remove_file(&path).map_err(|error| error.to_string())?;
    lab.finish()
}

#[test]
fn our_driver_refuses_a_second_port_on_the_same_socket() -> Outcome {
    let Some(driver) = common::ours_only("our_driver_refuses_a_second_port_on_the_same_socket")?
    else {
        return Ok(());
    };
    let lab = Lab::new("same-socket")?;
    let (mut back, mut front) = pair(&lab, &Backend::server(&driver, 1), &Frontend::client(1))?;
    let same = format!("net_vhost1,iface={}", lab.path_text("s"));
    if attach(&mut back, &same).is_ok() {
        back.run("port start 1")?;
        back.wait_for_log("Fail to configure port 1")?;
        back.run("port close 1")?;
    }
    // The first one still has its socket and its frontend.
    assert!(is_socket(&lab.path("s")));
    front.run("start")?;
    back.run("start tx_first 4")?;
    back.wait_for_packets(0, PortStats::default(), 10_000)?;
    front.quit()?;
    back.quit()?;
    lab.finish()
}

/// Attaches a device with bad devargs; the log must name each of `named`.
fn is_refused(back: &mut Testpmd, device: &str, named: &[&str]) -> Outcome {
    let mark = back.process().stderr.mark();
    let answer = back.run(&format!("port attach {device}"))?;
    if answer.contains("is attached") {
        return Err(format!("accepted: {device}").into());
    }
    for word in named {
        back.process()
            .stderr
            .wait_for(word, mark, std::time::Duration::from_secs(2))
            .map_err(|error| format!("{device}: {error}"))?;
    }
    Ok(())
}

#[test]
fn an_unknown_or_missing_devarg_is_refused() -> Outcome {
    let lab = Lab::new("unknown-devarg")?;
    let driver = Driver::under_test()?;
    let mut back = without_ports(&lab, &driver)?;
    let socket = lab.path_text("s");
    is_refused(
        &mut back,
        &format!("net_vhost1,iface={socket},colour=red"),
        &[],
    )?;
    is_refused(&mut back, "net_vhost2,queues=1", &[])?;
    is_refused(
        &mut back,
        &format!("net_vhost3,iface={socket},iface={socket}"),
        &[],
    )?;
    is_refused(&mut back, &format!("net_vhost4,iface={socket},tso"), &[])?;
    back.quit()?;
    lab.finish()
}

#[test]
fn our_driver_refuses_bad_devargs_and_names_them() -> Outcome {
    let Some(driver) = common::ours_only("our_driver_refuses_bad_devargs_and_names_them")? else {
        return Ok(());
    };
    let lab = Lab::new("bad-devargs")?;
    let mut back = without_ports(&lab, &driver)?;
    let socket = lab.path_text("s");
    let long = format!("/tmp/{}", "x".repeat(103));
    assert_eq!(long.len(), 108);
    // (devargs, what the log must name)
    let cases: [(String, &[&str]); 18] = [
        (format!("iface={socket},colour=red"), &["colour"]),
        ("queues=1".into(), &["iface"]),
        (format!("iface={socket},iface={socket}2"), &["iface"]),
        ("iface=".into(), &["iface"]),
        (format!("iface={long}"), &["iface", &long]),
        (format!("iface={socket},tso"), &["tso"]),
        (format!("iface={socket},queues=0"), &["queues", "0", "128"]),
        (format!("iface={socket},queues=abc"), &["queues", "abc"]),
        (format!("iface={socket},queues="), &["queues"]),
        (
            format!("iface={socket},queues=129"),
            &["queues", "129", "128"],
        ),
        (
            format!("iface={socket},queues=1025"),
            &["queues", "1025", "128"],
        ),
        (format!("iface={socket},queues=-1"), &["queues", "-1"]),
        (
            format!("iface={socket},queues=65537"),
            &["queues", "65537", "128"],
        ),
        (format!("iface={socket},tso=yes"), &["tso", "yes"]),
        (format!("iface={socket},client=on"), &["client", "on"]),
        (
            format!("iface={socket},iommu-support=true"),
            &["iommu-support", "true"],
        ),
        (
            format!("iface={socket},linear-buffer=x"),
            &["linear-buffer", "x"],
        ),
        (
            format!("iface={socket},postcopy-support=1x"),
            &["postcopy-support", "1x"],
        ),
    ];
    for (number, (devargs, named)) in cases.iter().enumerate() {
        is_refused(&mut back, &format!("net_vhost{number},{devargs}"), named)?;
    }
    // A good one still works after all that.
    attach(&mut back, &format!("net_vhost99,iface={socket},queues=0x2"))?;
    let info = back.run("show port info 0")?;
    assert!(info.contains("Max possible RX queues: 2"), "{info}");
    back.quit()?;
    lab.finish()
}

#[test]
fn our_driver_names_a_devarg_that_is_given_twice() -> Outcome {
    let Some(driver) = common::ours_only("our_driver_names_a_devarg_that_is_given_twice")? else {
        return Ok(());
    };
    let lab = Lab::new("twice")?;
    let mut back = without_ports(&lab, &driver)?;
    let socket = lab.path_text("s");
    let mark = back.process().stderr.mark();
    // Refused, or the last one wins with a warning; silence would be wrong.
    back.run(&format!(
        "port attach net_vhost0,iface={socket},queues=1,queues=2"
    ))?;
    let patience = std::time::Duration::from_secs(2);
    back.process().stderr.wait_for("queues", mark, patience)?;
    back.quit()?;
    lab.finish()
}
