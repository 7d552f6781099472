//! A guest and a port that answers it.

use super::{Backend, Guest, Image, Lab, Machine, Outcome, Testpmd};

/// Starts the port, and lets testpmd answer ARP and pings.
pub(crate) fn answering(lab: &Lab, backend: &Backend) -> Outcome<Testpmd> {
    let mut back = backend.start(lab)?;
    back.run("set fwd icmpecho")?;
    back.run("start")?;
    Ok(back)
}

/// A guest that has booted and reaches the port.
pub(crate) fn connected(
    lab: &Lab,
    image: &Image,
    machine: &Machine,
    back: &mut Testpmd,
) -> Outcome<Guest> {
    let mut guest = Guest::spawn(lab, image, machine)?;
    guest.wait_for_boot()?;
    guest.reach_the_backend()?;
    back.wait_for_link(0, true)?;
    Ok(guest)
}

/// A QEMU that was killed leaves the socket of its monitor.
pub(crate) fn after_a_kill(lab: &Lab) {
    let _ = std::fs::remove_file(lab.path("qemu.qmp"));
}
