//! `dmas=[txq0@00:04.0;rxq0@wq0.0],dmathr=1024,dma-ring-size=4096`: which queue has which copy
//! engines.
//!
//! ```text
//! dmas    = "[" entry { (";" | ",") entry } "]"  |  entry { ";" entry }
//! entry   = ("txq" | "rxq") ( N | N "-" M | "*" ) "@" engine { "+" engine }
//! engine  = [ ("dmadev" | "ioat" | "dsa" | "wq" | "sw") ":" ] name [ "#" vchan ]
//! ```
#![forbid(unsafe_code)]

use super::DevargsError;

/// Copies of fewer bytes stay with the CPU, unless `dmathr` says otherwise.
const DEFAULT_THRESHOLD: u32 = 1024;
/// Copies that an engine can have, unless `dma-ring-size` says otherwise.
const DEFAULT_RING_SIZE: u32 = 4096;
/// More than any engine can have.
const MAX_RING_SIZE: u32 = 65536;
const MAX_NAME: usize = 63;

/// Who drives an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// A dmadev of DPDK's.
    Dmadev,
    /// An I/OAT channel, by VFIO.
    Ioat,
    /// A DSA device, by VFIO.
    Dsa,
    /// A DSA work queue of the kernel's driver.
    Wq,
    /// A thread that copies.
    Software,
}

impl Backend {
    /// The word for it in `dmas`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Dmadev => "dmadev",
            Self::Ioat => "ioat",
            Self::Dsa => "dsa",
            Self::Wq => "wq",
            Self::Software => "sw",
        }
    }

    fn of(word: &str) -> Option<Self> {
        [
            Self::Dmadev,
            Self::Ioat,
            Self::Dsa,
            Self::Wq,
            Self::Software,
        ]
        .into_iter()
        .find(|backend| backend.word() == word)
    }
}

/// An engine as it was written, but for PCI addresses, which are whole (`0000:00:04.0`), and zeros
/// that say nothing (`wq00.01`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EngineName {
    /// Who drives it; `None`: whoever has it.
    pub backend: Option<Backend>,
    /// Its name there.
    pub name: String,
    /// A virtual channel that the application has set up.
    pub vchan: Option<u16>,
}

impl std::fmt::Display for EngineName {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.backend {
            Some(Backend::Software) if self.name == "sw" => {}
            Some(backend) => write!(out, "{}:", backend.word())?,
            None => {}
        }
        out.write_str(&self.name)?;
        match self.vchan {
            Some(vchan) => write!(out, "#{vchan}"),
            None => Ok(()),
        }
    }
}

/// The engines of one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueEngines {
    /// It is an rx queue: guest to host.
    pub rx: bool,
    /// Its number.
    pub queue: u16,
    /// At least one; none is twice in the list.
    pub engines: Vec<EngineName>,
}

/// What a port was told of copy engines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmaConfig {
    /// Queues with engines; no queue is twice in the list.
    pub queues: Vec<QueueEngines>,
    /// Copies of at least so many bytes go to an engine.
    pub threshold: u32,
    /// Copies that an engine should have room for; a power of two.
    pub ring_size: u32,
    /// Entries that were written twice.
    pub doubled: Vec<String>,
}

/// Reads the values of the three keys; `lists` are the values of each `dmas`.
pub(super) fn parse(
    lists: &[&str],
    threshold: Option<&str>,
    ring_size: Option<(&'static str, &str)>,
    queues: u16,
) -> Result<Option<DmaConfig>, DevargsError> {
    let bad = |key, value: &str, allowed| DevargsError::BadValue {
        key,
        value: value.into(),
        allowed,
    };
    let threshold = match threshold {
        None => DEFAULT_THRESHOLD,
        Some(text) => bytes(text).ok_or_else(|| {
            bad(
                "dmathr",
                text,
                "a number of bytes is allowed, such as 1024 or 4k",
            )
        })?,
    };
    let ring_size = match ring_size {
        None => DEFAULT_RING_SIZE,
        Some((key, text)) => decimal(text)
            .filter(|&size| size != 0)
            .map(|size| size.min(MAX_RING_SIZE).next_power_of_two())
            .ok_or_else(|| bad(key, text, "a number of copies is allowed, at least 1"))?,
    };
    if lists.is_empty() {
        return Ok(None);
    }
    let mut config = DmaConfig {
        queues: Vec::new(),
        threshold,
        ring_size,
        doubled: Vec::new(),
    };
    for list in lists {
        let inner = match list.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').unwrap_or(rest),
            None => list,
        };
        let last = inner.strip_suffix(';').unwrap_or(inner);
        if last.is_empty() {
            return Err(bad(
                "dmas",
                list,
                "a list of queues and engines is expected, such as [txq0@00:04.0;rxq0@wq0.0]",
            ));
        }
        let wrong = |entry: &str, problem| DevargsError::Engine {
            entry: entry.into(),
            problem,
        };
        for entry in last.split([';', ',']) {
            let read = read(entry, queues).map_err(|problem| wrong(entry, problem))?;
            config.add(entry, read);
        }
    }
    Ok(Some(config))
}

/// An entry: a direction, queues and engines.
struct Entry {
    rx: bool,
    first: u16,
    last: u16,
    engines: Vec<EngineName>,
}

impl DmaConfig {
    fn add(&mut self, text: &str, entry: Entry) {
        let mut doubled = false;
        for queue in entry.first..=entry.last {
            let same = |known: &&mut QueueEngines| (known.rx, known.queue) == (entry.rx, queue);
            let known = match self.queues.iter_mut().find(same) {
                Some(known) => known,
                None => {
                    self.queues.push(QueueEngines {
                        rx: entry.rx,
                        queue,
                        engines: Vec::new(),
                    });
                    let Some(new) = self.queues.last_mut() else {
                        continue;
                    };
                    new
                }
            };
            for engine in &entry.engines {
                if known.engines.contains(engine) {
                    doubled = true;
                } else {
                    known.engines.push(engine.clone());
                }
            }
        }
        if doubled {
            self.doubled.push(text.into());
        }
    }

    /// The engines of a queue; none for most.
    pub fn engines(&self, rx: bool, queue: u16) -> &[EngineName] {
        let same = |known: &&QueueEngines| (known.rx, known.queue) == (rx, queue);
        self.queues
            .iter()
            .find(same)
            .map_or(&[], |known| &known.engines)
    }
}

fn read(entry: &str, queues: u16) -> Result<Entry, &'static str> {
    const QUEUES: &str = "txq<N>, txq<N>-<M>, txq* or the same with rxq is expected before @";
    let (who, engines) = entry
        .split_once('@')
        .ok_or("<queue>@<engine> is expected")?;
    let (rx, numbers) = match (who.strip_prefix("txq"), who.strip_prefix("rxq")) {
        (Some(numbers), _) => (false, numbers),
        (_, Some(numbers)) => (true, numbers),
        _ => return Err(QUEUES),
    };
    let number = |text: &str| decimal(text).and_then(|number| u16::try_from(number).ok());
    let (first, last) = match (numbers, numbers.split_once('-')) {
        ("*", _) => (0, queues.saturating_sub(1)),
        (_, Some((first, last))) => (number(first).ok_or(QUEUES)?, number(last).ok_or(QUEUES)?),
        (one, None) => {
            let one = number(one).ok_or(QUEUES)?;
            (one, one)
        }
    };
    if first > last {
        return Err("the first queue of a range is above the last");
    }
    if last >= queues {
        return Err("there is no such queue, see queues=");
    }
    let engines: Result<Vec<_>, _> = engines.split('+').map(engine).collect();
    Ok(Entry {
        rx,
        first,
        last,
        engines: engines?,
    })
}

fn engine(text: &str) -> Result<EngineName, &'static str> {
    let (text, vchan) = match text.split_once('#') {
        None => (text, None),
        Some((text, vchan)) => {
            let vchan = decimal(vchan).and_then(|number| u16::try_from(number).ok());
            (text, Some(vchan.ok_or("a number is expected behind #")?))
        }
    };
    let prefixed = text
        .split_once(':')
        .and_then(|(word, rest)| Some((Backend::of(word)?, rest)));
    let (backend, name) = match prefixed {
        Some((backend, rest)) => (Some(backend), rest),
        None if text == "sw" => (Some(Backend::Software), text),
        None => (None, text),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || ".:_-".contains(c);
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(plain) {
        return Err("an engine's name has 1 to 63 letters, digits, or any of . : _ -");
    }
    if vchan.is_some() && !matches!(backend, None | Some(Backend::Dmadev)) {
        return Err("only a dmadev has channels behind #");
    }
    let device = matches!(backend, Some(Backend::Ioat | Backend::Dsa));
    let name = match (pci(name), work_queue(name)) {
        (Some(name), _) => name,
        (None, _) if device => return Err("a PCI address is expected, such as 0000:00:04.0"),
        (None, Some((device, queue))) => format!("wq{device}.{queue}"),
        (None, None) if backend == Some(Backend::Wq) => {
            return Err("a work queue is expected, such as wq0.1");
        }
        (None, None) => name.to_owned(),
    };
    Ok(EngineName {
        backend,
        name,
        vchan,
    })
}

/// The two numbers of a work queue's name, `wqD.Q`.
pub fn work_queue(name: &str) -> Option<(u32, u32)> {
    let (device, queue) = name.strip_prefix("wq")?.split_once('.')?;
    Some((decimal(device)?, decimal(queue)?))
}

/// The whole form of a PCI address, `-q<N>` included; `None` when it is none.
pub fn pci(name: &str) -> Option<String> {
    let (address, queue) = match name.split_once("-q") {
        Some((address, queue)) => (address, Some(decimal(queue)?)),
        None => (name, None),
    };
    let (rest, function) = address.split_once('.')?;
    let mut parts = rest.rsplit(':');
    let device = hex(parts.next()?, 2)?;
    let bus = hex(parts.next()?, 2)?;
    let domain = match parts.next() {
        Some(domain) => hex(domain, 4)?,
        None => 0,
    };
    let function = hex(function, 1)?;
    if parts.next().is_some() || device > 0x1f || function > 7 {
        return None;
    }
    let queue = queue.map_or_else(String::new, |queue| format!("-q{queue}"));
    Some(format!(
        "{domain:04x}:{bus:02x}:{device:02x}.{function}{queue}"
    ))
}

fn hex(text: &str, most: usize) -> Option<u32> {
    let fits = (1..=most).contains(&text.len()) && text.chars().all(|c| c.is_ascii_hexdigit());
    u32::from_str_radix(text, 16).ok().filter(|_| fits)
}

fn decimal(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// Bytes, with `k` for 1024 of them.
fn bytes(text: &str) -> Option<u32> {
    match text.strip_suffix(['k', 'K']) {
        Some(kilo) => decimal(kilo)?.checked_mul(1024),
        None => decimal(text),
    }
}

#[cfg(test)]
mod tests;
