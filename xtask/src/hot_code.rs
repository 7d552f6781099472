//! What the compiled burst bodies must not have, and one thing that they must: no locked instruction
//! but a fence, no division, no call but to what is named here, and `prefetchw` where guest memory is
//! written.
//!
//! All of these come back unseen: with a bound that the compiler no longer sees, an inline function
//! that grew, or an intrinsic that means another instruction.

use std::collections::{BTreeMap, BTreeSet};

use crate::panic_free::function_start;

/// One function of a disassembly.
struct Function<'a> {
    name: &'a str,
    instructions: Vec<Instruction<'a>>,
}

struct Instruction<'a> {
    address: u64,
    text: &'a str,
}

/// Nothing here divides.
const HOT: [&str; 5] = [
    "::datapath::dequeue::",
    "::datapath::enqueue::",
    "::datapath::offloaded::",
    "::datapath::level::",
    "::port::burst::",
];

/// Of these, what may lock: engines and large buffers are shared by queues, and an RARP frame is handed
/// over by another thread.
const MAY_LOCK: [&str; 4] = [
    "::datapath::offloaded::",
    "_burst_offloaded",
    "::datapath::dequeue::copy_large",
    "::port::burst::inject",
];

/// What of the bodies is compiled for a level of the processor: their loops.
const LEVEL: &str = "::datapath::level::Level>::run";

/// Where the bodies for packets as most are stand. All functions there are of them, but for those of
/// [`GENERAL`].
const SHORT: [&str; 3] = ["::datapath::dequeue::", "::datapath::enqueue::", LEVEL];

/// The bodies for other packets, and what is rare.
const GENERAL: [&str; 12] = [
    "::send_unusual",
    "::changes_of",
    "::complete",
    "::dequeue_chain",
    "::look",
    "::copy_frame",
    "::copy_large",
    "::allocate_some",
    "::enqueue_chains",
    "::enqueue_one_by_one",
    "::Scatter<",
    "::plan",
];

/// Were they renamed?
const NEEDED: [&str; 3] = [
    "::datapath::dequeue::dequeue_burst",
    "::datapath::enqueue::enqueue_burst",
    LEVEL,
];

/// What the short bodies may call, besides one another outside of their loops. None of it for a packet
/// of less than 256 bytes in one buffer, of which nothing is asked, that lies where the one before lay.
const ALLOWED: [&str; 25] = [
    // Packets that are not for them.
    "::send_unusual",
    "::dequeue_chain",
    "::enqueue_chains",
    "::enqueue_one_by_one",
    // A packet with something in its header.
    "::datapath::offload::take_up",
    "::datapath::enqueue::changes_of",
    "::datapath::enqueue::complete",
    "::virtio_net::checksum::Sum::add",
    // Long packets.
    "::datapath::copy::copy_long",
    "memcpy@",
    // Every so many packets: sizes are counted.
    "::datapath::counters::add_group",
    // The mempool, when the cache of the lcore does not do, and packets that are not plain.
    INDIRECT,
    "::dpdk::mempool::Mempool::get_and_refill",
    "::allocate_some",
    "rte_pktmbuf_free_bulk@",
    "::dpdk::mbuf::free_others",
    // Another region than the one before; behind an IOMMU, another page.
    "::memory::shared::Window::around",
    "::memory::lookaside::IotlbCursor::find_buffer",
    "::memory::lookaside::wake",
    "::virtqueue::ahead::look_on",
    // While the guest is migrated.
    "::memory::dirty_log::DirtyPages::mark_long",
    "::memory::dirty_log::DirtyPages::seek",
    "::memory::dirty_log::DirtyPages::write",
    "::virtqueue::dirty::QueueLog::publish",
    // Once a burst, when the driver wants it.
    "::virtqueue::notify::Notifier::call",
];

/// Bodies that write to the guest: the lines are in the caches of its processor, so the loops ask for them
/// as their owner.
const WRITING: &str = "::datapath::enqueue::";

/// Asks to own a line.
const PREFETCH: &str = "prefetchw";

/// A call through a register.
const INDIRECT: &str = "(through a register)";

/// Functions by the place of the pointer through which they are called: the name and, in this file, the
/// address.
type Slots<'a> = BTreeMap<u64, (&'a str, Option<u64>)>;

/// What is wrong with the hot functions of `objdump -d`'s listing, a line each; `relocations` is what
/// `objdump -R` says of the same file.
pub(crate) fn faults(listing: &str, relocations: &str) -> BTreeSet<String> {
    let functions = functions(listing);
    let slots = slots(&functions, relocations);
    let writing = writing(&functions, &slots);
    let mut faults = BTreeSet::new();
    if writing.is_empty() {
        faults.insert("no loop writes to the guest".to_owned());
    }
    for part in NEEDED {
        if !functions
            .iter()
            .any(|function| is_any(function.name, &[part]))
        {
            faults.insert(format!("there is no function {part}"));
        }
    }
    for function in functions
        .iter()
        .filter(|function| is_any(function.name, &HOT))
    {
        let mut found = |what: &str| faults.insert(format!("{}: {what}", function.name));
        for what in function.divisions().chain(function.locks()) {
            found(what);
        }
        for what in function.calls(&slots) {
            found(&format!("calls {what}"));
        }
        if writing.contains(&function.start()) && !function.has(PREFETCH) {
            found("writes to the guest without prefetchw");
        }
    }
    faults
}

/// Where the loops begin that write to the guest. Those of both directions have one name, so they are found
/// by who calls them.
fn writing(functions: &[Function<'_>], slots: &Slots<'_>) -> BTreeSet<u64> {
    let loops = functions.iter().filter(|f| is_any(f.name, &[LEVEL]));
    let loops: BTreeSet<u64> = loops.map(Function::start).collect();
    let bodies = functions
        .iter()
        .filter(|function| function.name.contains(WRITING) && is_short(function.name));
    bodies
        .flat_map(|body| &body.instructions)
        .filter_map(|instruction| instruction.place(slots))
        .filter(|to| loops.contains(to))
        .collect()
}

fn is_short(name: &str) -> bool {
    is_any(name, &SHORT) && !is_any(name, &GENERAL)
}

/// Whether a name contains one of these, up to the end of a word.
fn is_any(name: &str, parts: &[&str]) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    parts.iter().any(|part| {
        let rest = name.split_once(part).map(|(_, rest)| rest);
        rest.is_some_and(|rest| !(part.ends_with(is_word) && rest.starts_with(is_word)))
    })
}

impl Function<'_> {
    fn start(&self) -> u64 {
        self.instructions.first().map_or(0, |first| first.address)
    }

    fn has(&self, mnemonic: &str) -> bool {
        let mut mnemonics = self.instructions.iter().map(Instruction::mnemonic);
        mnemonics.any(|found| found == mnemonic)
    }

    fn divisions(&self) -> impl Iterator<Item = &str> {
        let instructions = self.instructions.iter();
        instructions
            .filter(|instruction| {
                let mnemonic = instruction.mnemonic();
                mnemonic.starts_with("div") || mnemonic.starts_with("idiv")
            })
            .map(|instruction| instruction.text)
    }

    /// Locked instructions, but for a fence that is not run for each packet.
    fn locks(&self) -> impl Iterator<Item = &str> {
        let checked = !is_any(self.name, &MAY_LOCK);
        let instructions = self.instructions.iter().enumerate();
        instructions
            .filter(move |(nth, instruction)| {
                let may = !instruction.is_locked() || instruction.is_fence() && !self.repeats(*nth);
                checked && !may
            })
            .map(|(_, instruction)| instruction.text)
    }

    /// Functions that are called and must not be.
    fn calls<'s>(&'s self, slots: &Slots<'s>) -> BTreeSet<&'s str> {
        let checked = is_short(self.name);
        let in_loop = self.name.contains(LEVEL);
        let instructions = self.instructions.iter().filter(|_| checked);
        instructions
            .filter_map(|instruction| instruction.callee(slots))
            .filter(|name| *name != self.name && !is_any(name, &ALLOWED))
            .filter(|name| in_loop || !is_short(name))
            .collect()
    }

    /// Whether the `nth` instruction can run again before the function returns.
    fn repeats(&self, nth: usize) -> bool {
        let mut seen = BTreeSet::new();
        let mut waiting = vec![nth];
        while let Some(at) = waiting.pop() {
            for to in self.successors(at) {
                if to == nth {
                    return true;
                }
                if seen.insert(to) {
                    waiting.push(to);
                }
            }
        }
        false
    }

    /// Which instructions of the function may follow the `nth`.
    fn successors(&self, nth: usize) -> impl Iterator<Item = usize> {
        let instruction = self.instructions.get(nth);
        let jump = instruction.filter(|instruction| instruction.mnemonic() != "call");
        let jump = jump.and_then(Instruction::fixed_place).and_then(|to| {
            let found = self
                .instructions
                .binary_search_by_key(&to, |other| other.address);
            found.ok()
        });
        let goes_on = instruction.is_some_and(|instruction| !instruction.ends());
        let next = (goes_on && nth + 1 < self.instructions.len()).then_some(nth + 1);
        jump.into_iter().chain(next)
    }
}

impl<'a> Instruction<'a> {
    fn mnemonic(&self) -> &'a str {
        self.text.split_whitespace().next().unwrap_or_default()
    }

    /// An exchange with memory locks without saying so.
    fn is_locked(&self) -> bool {
        let mnemonic = self.mnemonic();
        mnemonic == "lock" || mnemonic.starts_with("xchg") && self.text.contains('(')
    }

    /// A locked instruction that changes nothing, on the stack: cheaper than `mfence`.
    fn is_fence(&self) -> bool {
        self.text.starts_with("lock or")
            && self.text.contains(" $0x0,")
            && self.text.ends_with("(%rsp)")
    }

    /// Nothing follows it in place.
    fn ends(&self) -> bool {
        matches!(self.mnemonic(), "jmp" | "ret" | "ud2")
    }

    /// A call or a jump?
    fn goes(&self) -> bool {
        self.mnemonic() == "call" || self.mnemonic().starts_with('j')
    }

    /// Where a jump or a call goes that names the place.
    fn fixed_place(&self) -> Option<u64> {
        let operand = self.text.split_whitespace().nth(1).filter(|_| self.goes());
        u64::from_str_radix(operand?, 16).ok()
    }

    /// The pointer through which a jump or a call goes.
    fn slot<'s>(&self, slots: &Slots<'s>) -> Option<(&'s str, Option<u64>)> {
        let (_, note) = self.text.split_once("# ").filter(|_| self.goes())?;
        let slot = u64::from_str_radix(note.split(' ').next()?, 16).ok()?;
        slots.get(&slot).copied()
    }

    /// Where a jump or a call goes.
    fn place(&self, slots: &Slots<'_>) -> Option<u64> {
        let through = || self.slot(slots)?.1;
        self.fixed_place().or_else(through)
    }

    /// The function that a call, or a jump out of the function, leads to. Through a register it is one of
    /// the mempool's, or the address of a variable of the thread.
    fn callee(&self, slots: &Slots<'a>) -> Option<&'a str> {
        let named = || {
            let (_, name) = self.text.strip_suffix('>')?.split_once(" <")?;
            Some(name.split_once("+0x").map_or(name, |(name, _)| name))
        };
        if !self.goes() {
            return None;
        }
        let found = self.slot(slots).map(|(name, _)| name).or_else(named);
        found.or((self.mnemonic() == "call").then_some(INDIRECT))
    }
}

fn functions(listing: &str) -> Vec<Function<'_>> {
    let mut functions: Vec<Function<'_>> = Vec::new();
    for line in listing.lines() {
        if let Some((_, name)) = function_start(line) {
            let instructions = Vec::new();
            functions.push(Function { name, instructions });
        } else if let Some((address, text)) = line.split_once(":\t")
            && let Ok(address) = u64::from_str_radix(address.trim(), 16)
            && let Some(function) = functions.last_mut()
        {
            let text = text.trim();
            function.instructions.push(Instruction { address, text });
        }
    }
    functions
}

/// Lines are `slot R_X86_64_RELATIVE *ABS*+0xaddress` and `slot R_X86_64_GLOB_DAT name`.
fn slots<'a>(functions: &[Function<'a>], relocations: &'a str) -> Slots<'a> {
    let starts: BTreeMap<u64, &'a str> = functions
        .iter()
        .map(|function| (function.start(), function.name))
        .collect();
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let slot = |line: &'a str| {
        let mut words = line.split_whitespace();
        let (slot, kind, value) = (words.next()?, words.next()?, words.next()?);
        let function = match (kind, value.strip_prefix("*ABS*+0x")) {
            ("R_X86_64_RELATIVE", Some(address)) => {
                let address = number(address)?;
                (*starts.get(&address)?, Some(address))
            }
            _ => (value, None),
        };
        Some((number(slot)?, function))
    };
    relocations.lines().filter_map(slot).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEQUEUE: &str = "rte_net_vhost::datapath::dequeue::dequeue_burst";
    const ENQUEUE: &str = "rte_net_vhost::datapath::enqueue::enqueue_burst";
    const RUN: &str = "<rte_net_vhost::datapath::level::Avx2 as \
                       rte_net_vhost::datapath::level::Level>::run::compiled";

    /// Bodies without a fault; the lines of dequeue are given.
    fn with(dequeue: &[&str]) -> String {
        let mut listing = String::new();
        let mut function = |start: u64, name: &str, lines: &[&str]| {
            listing += &format!("{start:016x} <{name}>:\n");
            for (at, line) in (start..).zip(lines) {
                listing += &format!("    {at:x}:\t{line}\n");
            }
            listing += "\n";
        };
        function(0x1000, DEQUEUE, dequeue);
        let call = format!("call   3000 <{RUN}>");
        function(0x2000, ENQUEUE, &[&call, "ret"]);
        let jump = format!("jmp    3000 <{RUN}>");
        function(
            0x2800,
            "rte_net_vhost::datapath::enqueue::short_asking",
            &[&jump],
        );
        function(0x3000, RUN, &["prefetchw 0x40(%rax)", "ret"]);
        function(
            0x4000,
            "rte_net_vhost::datapath::offload::take_up",
            &["ret"],
        );
        function(
            0x5000,
            "rte_net_vhost::memory::lookup",
            &["div    %rcx", "ret"],
        );
        listing
    }

    fn found(dequeue: &[&str]) -> Vec<String> {
        let relocations = "0000000000009000 R_X86_64_RELATIVE  *ABS*+0x5000\n\
                           0000000000009008 R_X86_64_GLOB_DAT  memset@GLIBC_2.2.5\n\
                           0000000000009010 R_X86_64_GLOB_DAT  memcpy@GLIBC_2.14\n";
        faults(&with(dequeue), relocations).into_iter().collect()
    }

    #[test]
    fn bodies_as_they_should_be_have_no_fault() {
        let faults = found(&[
            "jne    1003 <rte_net_vhost::datapath::dequeue::dequeue_burst+0x3>",
            "call   4000 <rte_net_vhost::datapath::offload::take_up>",
            "call   *0x8000(%rip)        # 9010 <_DYNAMIC+0x10>",
            "xchg   %ax,%ax",
            "ret",
        ]);

        assert!(faults.is_empty(), "{faults:?}");
    }

    #[test]
    fn a_division_is_found() {
        for line in ["div    %rcx", "divq   0x8(%rax)", "idivl  %ecx"] {
            assert_eq!(found(&[line, "ret"]), [format!("{DEQUEUE}: {line}")]);
        }
    }

    #[test]
    fn a_locked_instruction_is_found() {
        for line in [
            "lock xadd %rax,(%rcx)",
            "lock orl $0x1,-0x40(%rsp)",
            "lock orl $0x0,(%rax)",
            "xchg   %eax,(%rcx)",
        ] {
            assert_eq!(found(&[line, "ret"]), [format!("{DEQUEUE}: {line}")]);
        }
    }

    #[test]
    fn a_fence_is_a_fault_in_a_loop_only() {
        let fence = "lock orl $0x0,-0x40(%rsp)";
        let back = "jne    1000 <rte_net_vhost::datapath::dequeue::dequeue_burst>";

        assert!(found(&["nop", back, fence, "ret"]).is_empty());
        assert_eq!(
            found(&["nop", fence, back, "ret"]),
            [format!("{DEQUEUE}: {fence}")]
        );
        // What stands behind the loop and leads into it is a part of it.
        let out = "je     1003 <rte_net_vhost::datapath::dequeue::dequeue_burst+0x3>";
        let again = "jmp    1000 <rte_net_vhost::datapath::dequeue::dequeue_burst>";
        assert_eq!(
            found(&["nop", out, "ret", fence, again]),
            [format!("{DEQUEUE}: {fence}")]
        );
    }

    #[test]
    fn a_call_that_is_not_named_is_found() {
        for (line, name) in [
            (
                "call   5000 <rte_net_vhost::memory::lookup>",
                "rte_net_vhost::memory::lookup",
            ),
            (
                "jmp    5000 <rte_net_vhost::memory::lookup>",
                "rte_net_vhost::memory::lookup",
            ),
            (
                "call   *0x8000(%rip)        # 9000 <_DYNAMIC+0x0>",
                "rte_net_vhost::memory::lookup",
            ),
            (
                "call   *0x8000(%rip)        # 9008 <_DYNAMIC+0x8>",
                "memset@GLIBC_2.2.5",
            ),
        ] {
            assert_eq!(found(&[line, "ret"]), [format!("{DEQUEUE}: calls {name}")]);
        }
    }

    #[test]
    fn a_part_of_a_body_is_no_fault_outside_of_its_loop() {
        let line = "call   6000 <rte_net_vhost::datapath::dequeue::gather>";

        assert!(found(&[line, "ret"]).is_empty());
        let listing = with(&["ret"]).replace("prefetchw 0x40(%rax)", line);
        let fault = format!("{RUN}: calls rte_net_vhost::datapath::dequeue::gather");
        assert!(faults(&listing, "").contains(&fault));
    }

    #[test]
    fn a_loop_that_writes_to_the_guest_without_prefetchw_is_found() {
        let listing = with(&["ret"]);

        let without = listing.replace("prefetchw", "prefetcht0");
        let apart = listing.replace("3000 <", "4000 <");

        let fault = format!("{RUN}: writes to the guest without prefetchw");
        assert!(faults(&without, "").contains(&fault));
        assert!(faults(&apart, "").contains("no loop writes to the guest"));
    }

    #[test]
    fn bodies_under_another_name_do_not_pass() {
        let listing = with(&["ret"]).replace("dequeue_burst", "receive_burst");

        let faults = faults(&listing, "");

        assert!(
            faults
                .iter()
                .any(|fault| fault.contains("there is no function"))
        );
    }
}
