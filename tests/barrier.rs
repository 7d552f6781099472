//! The gate where the kernel has no membarrier(2) for us, from the start or from one moment on.
//!
//! Not in a binary that has the plugin's constructor, which asks the kernel before a test can.
#![cfg(not(feature = "dpdk"))]

use std::env;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;

use rte_net_vhost::virtqueue::{Allow, Gate, prepare_barriers};

/// Set in the process that a test runs itself in again.
const INSIDE: &str = "NET_VHOST_BARRIER_TEST";

/// Runs `work`, which is all of the test called `name`, in a process of its own: the kernel's answer is
/// kept for the life of a process.
fn in_a_process_of_its_own(name: &str, work: impl FnOnce()) {
    if env::var_os(INSIDE).is_some() {
        return work();
    }
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", name]).env(INSIDE, "1");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

#[test]
fn a_process_that_may_not_use_membarrier_fences_itself() {
    let name = "a_process_that_may_not_use_membarrier_fences_itself";
    in_a_process_of_its_own(name, || {
        forbid_membarrier();
        assert!(!prepare_barriers());
        hand_over(&Arc::new(gate()), || {});
    });
}

#[test]
fn a_process_that_loses_membarrier_fences_itself_from_then_on() {
    let name = "a_process_that_loses_membarrier_fences_itself_from_then_on";
    in_a_process_of_its_own(name, || {
        assert!(prepare_barriers());
        let gate = Arc::new(gate());
        hand_over(&gate, || {});
        assert!(prepare_barriers());
        hand_over(&gate, forbid_membarrier);
        assert!(!prepare_barriers());
    });
}

fn gate() -> Gate<u64> {
    let gate = Gate::new();
    gate.allow(Allow::Started);
    gate.allow(Allow::Attached);
    gate.install(0);
    gate
}

/// An lcore polls while the control side makes the number odd and even again; `meanwhile` is done when
/// both are at it.
fn hand_over(gate: &Arc<Gate<u64>>, meanwhile: impl FnOnce()) {
    let bursts = Arc::new(AtomicU64::new(0));
    let end = Arc::new(AtomicBool::new(false));
    let lcore = {
        let (gate, bursts, end) = (Arc::clone(gate), Arc::clone(&bursts), Arc::clone(&end));
        thread::spawn(move || {
            while !end.load(Relaxed) {
                // SAFETY: the only thread that enters the gate.
                if let Some(number) = unsafe { gate.enter(|number| *number) } {
                    assert!(number.is_multiple_of(2), "seen in the middle of a change");
                    bursts.fetch_add(1, Relaxed);
                }
            }
        })
    };
    let mut meanwhile = Some(meanwhile);
    let mut changes = 0;
    while changes < 2_000 || bursts.load(Relaxed) < 100 {
        if changes == 1_000
            && let Some(meanwhile) = meanwhile.take()
        {
            meanwhile();
        }
        gate.with(|number| {
            if let Some(number) = number {
                *number += 1;
                std::hint::spin_loop();
                *number += 1;
            }
        });
        changes += 1;
        thread::yield_now();
    }
    end.store(true, Relaxed);
    lcore.join().unwrap();
}

/// From now on membarrier(2) fails for this thread, and for those that it makes.
fn forbid_membarrier() {
    const LOAD_NUMBER: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let step = |code: u32, jf, k| libc::sock_filter {
        code: code.try_into().unwrap(),
        jt: 0,
        jf,
        k,
    };
    let number = u32::try_from(libc::SYS_membarrier).unwrap();
    let mut steps = [
        step(LOAD_NUMBER, 0, 0),
        step(IF_EQUAL, 1, number),
        step(
            RETURN,
            0,
            libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned(),
        ),
        step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: steps.len().try_into().unwrap(),
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: plain integers.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(result, 0);
    // SAFETY: a whole filter, which the kernel copies.
    let result = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
