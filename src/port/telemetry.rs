//! Commands of the telemetry socket: which ports there are, and why a link is down.
//!
//! They ask only what any thread may ask, and no answer waits for a lcore or a frontend.
#![forbid(unsafe_code)]

use std::ffi::{CStr, CString};
use std::sync::atomic::Ordering;

use super::registry::{self, Found};
use super::{Port, lock};
use crate::dpdk::telemetry::{self, Command, Dictionary};
use crate::guard;
use crate::log::PORT;
use crate::session::{Frontend, features};

/// Makes the commands known.
pub(super) fn register() {
    let known = telemetry::register::<List>()
        & telemetry::register::<Info>()
        & telemetry::register::<Queue>();
    if !known {
        log::warn!(target: PORT, "telemetry commands of another net_vhost driver are in the way");
    }
}

/// How far a port is on the way to traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    NoFrontend,
    Handshake,
    Stopped,
    Up,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::NoFrontend => "no_frontend",
            Self::Handshake => "handshake",
            Self::Stopped => "stopped",
            Self::Up => "up",
        }
    }

    /// What to look at, for somebody who wonders.
    fn sentence(self, client: bool) -> &'static str {
        match (self, client) {
            (Self::NoFrontend, false) => "nobody has connected to the socket",
            (Self::NoFrontend, true) => "nobody listens on the socket; the port keeps trying",
            (Self::Handshake, _) => {
                "a frontend is connected; its first queue pair is not ready, as before a guest's \
                 driver has started or without shared memory"
            }
            (Self::Stopped, _) => "the link is up; the application has not started the port",
            (Self::Up, _) => "the link is up and the port is started",
        }
    }
}

impl Port {
    fn state(&self, frontends: &[Frontend]) -> State {
        let attached = self.shared.attached.load(Ordering::Relaxed);
        match (frontends, attached) {
            (_, true) if self.shared.started.load(Ordering::Relaxed) => State::Up,
            (_, true) => State::Stopped,
            ([], _) => State::NoFrontend,
            _ => State::Handshake,
        }
    }

    fn frontends(&self) -> Vec<Frontend> {
        let endpoint = lock(&self.endpoint);
        endpoint
            .as_ref()
            .map(|endpoint| endpoint.frontends())
            .unwrap_or_default()
    }

    fn mode(&self) -> &'static str {
        match self.config.client {
            true => "client",
            false => "server",
        }
    }
}

/// The port whose number is the first parameter, and the parameters behind it.
fn find(parameters: &str) -> Option<(Found, &str)> {
    let (number, rest) = parameters.split_once(',').unwrap_or((parameters, ""));
    let number: u16 = number.trim().parse().ok()?;
    let mut ports = registry::all().into_iter();
    Some((ports.find(|found| found.id == number)?, rest))
}

/// All configured ports of this process.
struct List;

impl Command for List {
    const NAME: &'static CStr = c"/net_vhost/list";
    const HELP: &'static CStr =
        c"Returns the net_vhost ports that are configured. Takes no parameters";

    fn answer(_parameters: &str, answer: &mut Dictionary<'_>) -> Option<()> {
        guard::catch(None, || {
            for Found { id, port, .. } in registry::all() {
                let key = CString::new(id.to_string()).ok()?;
                answer.dictionary(&key, |entry| {
                    entry.text(c"name", &port.name);
                    entry.text(c"iface", &port.config.iface);
                    entry.text(c"mode", port.mode());
                    entry.text(c"state", port.state(&port.frontends()).word());
                });
            }
            Some(())
        })
    }
}

/// One port.
struct Info;

impl Command for Info {
    const NAME: &'static CStr = c"/net_vhost/info";
    const HELP: &'static CStr =
        c"Returns what a net_vhost port is, and why its link is down. Parameters: int port_id";

    fn answer(parameters: &str, answer: &mut Dictionary<'_>) -> Option<()> {
        guard::catch(None, || {
            let (Found { id, mtu, port }, _) = find(parameters)?;
            let shared = &port.shared;
            let frontends = port.frontends();
            let state = port.state(&frontends);
            answer.number(c"port_id", id);
            answer.text(c"name", &port.name);
            answer.text(c"iface", &port.config.iface);
            answer.text(c"mode", port.mode());
            answer.text(c"state", state.word());
            answer.text(c"state_about", state.sentence(port.config.client));
            answer.number(c"frontends", frontends.len() as u64);
            if let Some(first) = frontends.first() {
                let number = |value: Option<u64>| value.unwrap_or_default();
                answer.number(
                    c"peer_pid",
                    number(first.pid.map(|pid| pid.unsigned_abs().into())),
                );
                answer.number(c"peer_uid", number(first.uid.map(Into::into)));
            }
            answer.number(c"queue_pairs", shared.queues);
            answer.number(c"queue_pairs_ready", pairs_ready(&port));
            answer.number(c"mtu", mtu);
            if let Ok(vid) = u64::try_from(shared.vid.load(Ordering::Relaxed)) {
                answer.number(c"vid", vid);
            }
            let acked = match shared.attached.load(Ordering::Relaxed) {
                true => shared.features.load(Ordering::Relaxed),
                false => 0,
            };
            answer.text(c"features", &format!("{acked:#x}"));
            answer.texts(c"feature_names", features::each_name(acked));
            Some(())
        })
    }
}

/// Queue pairs of which both vrings are with the port.
fn pairs_ready(port: &Port) -> u64 {
    let pairs = port.rx.iter().zip(&port.tx);
    pairs
        .filter(|(rx, tx)| rx.is_there() && tx.is_there())
        .count() as u64
}

/// One queue pair.
struct Queue;

impl Command for Queue {
    const NAME: &'static CStr = c"/net_vhost/queue";
    const HELP: &'static CStr =
        c"Returns the rings of a net_vhost port's queue pair. Parameters: int port_id, int queue_id";

    fn answer(parameters: &str, answer: &mut Dictionary<'_>) -> Option<()> {
        guard::catch(None, || {
            let (Found { port, .. }, rest) = find(parameters)?;
            let queue: usize = rest.trim().parse().ok()?;
            let (rx, tx) = (port.rx.get(queue)?, port.tx.get(queue)?);
            answer.dictionary(c"rx", |entry| {
                entry.text(c"ring", &rx.mode());
                entry.number(c"waiting", rx.available());
                entry.text(c"interrupt", if rx.wants_wake() { "armed" } else { "off" });
            });
            answer.dictionary(c"tx", |entry| {
                entry.text(c"ring", &tx.mode());
                entry.number(c"guest_buffers", tx.available());
                entry.number(c"without_buffer", tx.without_buffer());
            });
            Some(())
        })
    }
}
