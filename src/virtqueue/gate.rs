//! The hand-over of a running object between the control side and one lcore.
//!
//! The lcore side costs no locked instruction and no fence: two flags, read and written relaxed,
//! with the compiler kept in order. The control side pays for both, with membarrier(2): it makes
//! every running thread of the process pass a full barrier, after which the lcore either has seen
//! the gate closed, or its `busy` flag is visible.
//!
//! ```text
//! lcore                         control
//!   busy = 1                      open = 0
//!   (compiler fence)              membarrier
//!   open? use the object          while busy: wait
//!   busy = 0                      use the object
//! ```
//!
//! A burst never waits: a closed gate is nothing to do. The control side waits for at most one
//! burst. One gate serves one lcore at a time, as ethdev demands of a queue.

use std::marker::PhantomData;
use std::sync::PoisonError;

#[cfg(loom)]
use loom::{
    cell::UnsafeCell,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering, fence},
    },
};
#[cfg(not(loom))]
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering, compiler_fence},
};

/// How the two sides are kept from missing each other.
pub trait Barrier {
    /// The lcore's side, between its store and its load.
    fn light();
    /// The control side, between its store and its load.
    fn heavy();
}

/// membarrier(2) on the control side, nothing but compiler order on the lcore's.
#[derive(Debug)]
pub struct Membarrier;

#[cfg(not(loom))]
mod system {
    use std::sync::Once;
    use std::sync::atomic::{AtomicBool, Ordering, fence};
    use std::time::Duration;

    use once_cell::sync::Lazy;

    /// From linux/membarrier.h.
    const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
    const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

    fn membarrier(command: libc::c_int) -> bool {
        // SAFETY: membarrier takes plain integers and touches no memory of ours.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
    }

    /// Whether the kernel took the process's registration.
    static AVAILABLE: Lazy<bool> = Lazy::new(|| membarrier(REGISTER_PRIVATE_EXPEDITED));

    /// The kernel has no membarrier for us: the lcore's side must fence too.
    pub(super) static LIGHT_FENCES: AtomicBool = AtomicBool::new(false);

    /// Longer than any store waits in its processor before others see it.
    const LONG: Duration = Duration::from_millis(2);

    /// Registers the process; before the first lcore enters a gate. While there is one thread this
    /// costs nothing, later the kernel waits for all processors.
    pub(super) fn register() {
        if !*AVAILABLE {
            LIGHT_FENCES.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn heavy() {
        /// Done once; whoever comes meanwhile waits as well.
        static LOST: Once = Once::new();
        fence(Ordering::SeqCst);
        if *AVAILABLE && !membarrier(PRIVATE_EXPEDITED) {
            // Taken from us after the registration, as by a sandbox. Bursts that begin from now on
            // fence; those that had begun without have their store out long before this wait ends.
            LOST.call_once(|| {
                LIGHT_FENCES.store(true, Ordering::SeqCst);
                std::thread::sleep(LONG);
            });
        }
        fence(Ordering::SeqCst);
    }
}

/// Makes the barriers ready, which is cheapest while the process has one thread. Whether the control
/// side pays for both; otherwise each burst has a fence.
#[cfg(not(loom))]
pub fn prepare_barriers() -> bool {
    system::register();
    !system::LIGHT_FENCES.load(Ordering::Relaxed)
}

#[cfg(not(loom))]
impl Barrier for Membarrier {
    #[inline(always)]
    fn light() {
        if system::LIGHT_FENCES.load(Ordering::Relaxed) {
            std::sync::atomic::fence(Ordering::SeqCst);
        }
        compiler_fence(Ordering::SeqCst);
    }

    fn heavy() {
        system::heavy();
    }
}

/// loom knows no membarrier. A full fence on both sides allows the same outcomes.
#[cfg(loom)]
impl Barrier for Membarrier {
    fn light() {
        fence(Ordering::SeqCst);
    }

    fn heavy() {
        fence(Ordering::SeqCst);
    }
}

/// No barrier on the control side: what the model must reject.
#[cfg(loom)]
#[derive(Debug)]
pub struct NoBarrier;

#[cfg(loom)]
impl Barrier for NoBarrier {
    fn light() {
        fence(Ordering::SeqCst);
    }

    fn heavy() {}
}

/// A condition for polling. A gate is open while all of them hold and it holds an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allow {
    /// The port is started.
    Started = 1,
    /// A device is attached: the link is up.
    Attached = 2,
    /// The application has not stopped this queue.
    Queue = 4,
}

pub(super) const ALL: u8 = Allow::Started as u8 | Allow::Attached as u8 | Allow::Queue as u8;

/// The hand-over of a `T` between control threads and one lcore.
#[derive(Debug)]
#[repr(align(64))]
pub struct Gate<T, B = Membarrier> {
    /// Written by the lcore only.
    busy: AtomicBool,
    /// Written by the control side only, under `control`.
    open: AtomicBool,
    slot: UnsafeCell<Option<T>>,
    control: Mutex<Control>,
    barrier: PhantomData<B>,
}

#[cfg(not(loom))]
use std::cell::UnsafeCell;

#[derive(Debug)]
struct Control {
    allowed: u8,
    occupied: bool,
    poisoned: bool,
}

// SAFETY: `slot` is only touched by the lcore between `busy` and not `busy` while `open`, or by a
// control thread that holds `control`, closed the gate and saw `busy` clear.
unsafe impl<T: Send, B> Sync for Gate<T, B> {}
// SAFETY: a gate owns its object; moving it moves a `T: Send`.
unsafe impl<T: Send, B> Send for Gate<T, B> {}

impl<T, B: Barrier> Default for Gate<T, B> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T, B: Barrier> Gate<T, B> {
    /// An empty, closed gate. Only [`Allow::Queue`] is allowed from the start.
    pub fn new() -> Self {
        #[cfg(not(loom))]
        system::register();
        Self {
            busy: AtomicBool::new(false),
            open: AtomicBool::new(false),
            slot: UnsafeCell::new(None),
            control: Mutex::new(Control {
                allowed: Allow::Queue as u8,
                occupied: false,
                poisoned: false,
            }),
            barrier: PhantomData,
        }
    }

    /// The lcore's side: runs `work` on the object when the gate is open. `None` when it is not.
    ///
    /// A panic in `work` closes the gate for good; it is passed on.
    ///
    /// # Safety
    ///
    /// Only one thread at a time calls this on one gate.
    #[inline(always)]
    pub unsafe fn enter<R>(&self, work: impl FnOnce(&mut T) -> R) -> Option<R> {
        // SAFETY: the caller's promise.
        let mut inside = unsafe { self.begin() }?;
        let result = inside.work(work);
        inside.leave();
        result
    }

    /// As [`enter`](Self::enter), in steps: `None` when the gate is not open.
    ///
    /// # Safety
    ///
    /// Only one thread at a time is between this call and [`Inside::leave`].
    #[inline(always)]
    pub unsafe fn begin(&self) -> Option<Inside<'_, T, B>> {
        if !self.open.load(Ordering::Relaxed) {
            return None;
        }
        self.busy.store(true, Ordering::Relaxed);
        B::light();
        // Acquire: what the control side did to the object before it opened.
        if !self.open.load(Ordering::Acquire) {
            self.busy.store(false, Ordering::Release);
            return None;
        }
        Some(Inside(self))
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the gate and waits until the lcore has left.
    fn close(&self) {
        if self.open.load(Ordering::Relaxed) {
            self.open.store(false, Ordering::Relaxed);
            B::heavy();
        }
        let mut turns = 0_u32;
        // Acquire: pairs with the end of the burst.
        while self.busy.load(Ordering::Acquire) {
            turns = turns.saturating_add(1);
            #[cfg(loom)]
            loom::thread::yield_now();
            #[cfg(not(loom))]
            if turns < 64 {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }

    fn reopen(&self, control: &Control) {
        if control.allowed == ALL && control.occupied && !control.poisoned {
            // Release: all that was done to the object, before an lcore enters.
            self.open.store(true, Ordering::Release);
        }
    }

    /// Runs `work` on the slot while no lcore is inside; opens again when all is allowed.
    fn exclusive<R>(&self, work: impl FnOnce(&mut Option<T>, &mut Control) -> R) -> R {
        let mut control = self.control();
        self.close();
        #[cfg(not(loom))]
        let result = {
            // SAFETY: the gate is closed and `busy` was seen clear after that, so no lcore is in;
            // `control` is held, so no other control thread is.
            let slot = unsafe { &mut *self.slot.get() };
            let result = work(slot, &mut control);
            control.occupied = slot.is_some();
            result
        };
        #[cfg(loom)]
        let result = self.slot.with_mut(|slot| {
            // SAFETY: as above.
            let slot = unsafe { &mut *slot };
            let result = work(slot, &mut control);
            control.occupied = slot.is_some();
            result
        });
        self.reopen(&control);
        result
    }

    /// Puts an object in; the one that was there before comes back.
    pub fn install(&self, object: T) -> Option<T> {
        self.exclusive(|slot, _| slot.replace(object))
    }

    /// Takes the object out. After this no lcore touches it.
    pub fn take(&self) -> Option<T> {
        self.exclusive(|slot, _| slot.take())
    }

    /// Runs `work` on the object while no lcore is inside.
    pub fn with<R>(&self, work: impl FnOnce(Option<&mut T>) -> R) -> R {
        self.exclusive(|slot, _| work(slot.as_mut()))
    }

    /// Says that one of the conditions holds.
    pub fn allow(&self, what: Allow) {
        let mut control = self.control();
        control.allowed |= what as u8;
        self.reopen(&control);
    }

    /// Says that one of the conditions does not hold any more. After this no lcore is inside.
    pub fn forbid(&self, what: Allow) {
        let mut control = self.control();
        control.allowed &= !(what as u8);
        self.close();
    }

    /// Whether a panic closed the gate for good.
    pub fn poisoned(&self) -> bool {
        self.control().poisoned
    }
}

/// An lcore in the gate. Dropping it without [`leave`](Self::leave), as a burst that unwinds does,
/// closes the gate for good.
#[derive(Debug)]
#[must_use]
pub struct Inside<'g, T, B: Barrier = Membarrier>(&'g Gate<T, B>);

impl<T, B: Barrier> Inside<'_, T, B> {
    /// Runs `work` on the object.
    #[inline(always)]
    pub fn work<R>(&mut self, work: impl FnOnce(&mut T) -> R) -> Option<R> {
        #[cfg(not(loom))]
        {
            // SAFETY: `busy` is set and the gate was open after that (`begin`), so no control thread
            // touches the slot before `busy` is clear; no other lcore is here (promised there).
            let slot = unsafe { &mut *self.0.slot.get() };
            slot.as_mut().map(work)
        }
        #[cfg(loom)]
        self.0.slot.with_mut(|slot| {
            // SAFETY: as above.
            let slot = unsafe { &mut *slot };
            slot.as_mut().map(work)
        })
    }

    /// Leaves the gate.
    #[inline(always)]
    pub fn leave(self) {
        // Release: what this burst did, before a control thread sees `busy` clear.
        self.0.busy.store(false, Ordering::Release);
        std::mem::forget(self);
    }
}

impl<T, B: Barrier> Drop for Inside<'_, T, B> {
    #[cold]
    fn drop(&mut self) {
        // In this order: a control thread that waits for `busy` holds the lock.
        self.0.open.store(false, Ordering::Relaxed);
        self.0.busy.store(false, Ordering::Release);
        self.0.control().poisoned = true;
        self.0.open.store(false, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64};

    use super::*;

    fn enter<R>(gate: &Gate<u32>, work: impl FnOnce(&mut u32) -> R) -> Option<R> {
        // SAFETY: each test polls a gate from one thread.
        unsafe { gate.enter(work) }
    }

    fn opened(value: u32) -> Gate<u32> {
        let gate = Gate::new();
        gate.allow(Allow::Started);
        gate.allow(Allow::Attached);
        gate.install(value);
        gate
    }

    #[test]
    fn a_gate_opens_only_when_everything_is_allowed() {
        let gate = Gate::<u32>::new();
        gate.install(7);
        assert_eq!(enter(&gate, |v| *v), None);
        gate.allow(Allow::Attached);
        assert_eq!(enter(&gate, |v| *v), None);
        gate.allow(Allow::Started);
        assert_eq!(enter(&gate, |v| *v), Some(7));
        gate.forbid(Allow::Attached);
        assert_eq!(enter(&gate, |v| *v), None);
    }

    #[test]
    fn what_was_taken_out_cannot_be_entered() {
        let gate = opened(1);
        assert_eq!(gate.take(), Some(1));
        assert_eq!(enter(&gate, |v| *v), None);
        gate.install(2);
        assert_eq!(enter(&gate, |v| *v), Some(2));
    }

    #[test]
    fn a_panic_inside_closes_the_gate_for_good() {
        let gate = opened(1);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            enter(&gate, |_| panic!("broken burst"))
        }));
        assert!(caught.is_err());
        assert!(gate.poisoned());
        gate.install(2);
        assert_eq!(enter(&gate, |v| *v), None);
    }

    #[test]
    fn a_burst_in_steps_is_over_when_it_leaves() {
        let gate = opened(1);
        // SAFETY: one thread.
        let mut inside = unsafe { gate.begin() }.expect("open");
        assert_eq!(inside.work(|value| std::mem::replace(value, 2)), Some(1));
        assert_eq!(inside.work(|value| *value), Some(2));
        inside.leave();
        assert_eq!(gate.take(), Some(2));
        // SAFETY: as above.
        assert!(unsafe { gate.begin() }.is_none());
        assert!(!gate.poisoned());
    }

    #[test]
    fn a_burst_that_does_not_leave_closes_the_gate_for_good() {
        let gate = opened(1);
        // SAFETY: one thread.
        drop(unsafe { gate.begin() });
        assert!(gate.poisoned());
        assert_eq!(gate.take(), Some(1));
        gate.install(2);
        assert_eq!(enter(&gate, |value| *value), None);
    }

    #[test]
    fn no_burst_sees_what_the_control_side_is_changing() {
        let gate = Arc::new(opened(0));
        let bursts = Arc::new(AtomicU64::new(0));
        let end = Arc::new(AtomicBool::new(false));
        let lcore = {
            let (gate, bursts, end) = (Arc::clone(&gate), Arc::clone(&bursts), Arc::clone(&end));
            std::thread::spawn(move || {
                while !end.load(Ordering::Relaxed) {
                    if let Some(value) = enter(&gate, |v| *v) {
                        assert_eq!(value % 2, 0, "seen in the middle of a change");
                        bursts.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        };
        let mut changes = 0;
        while changes < 2_000 || bursts.load(Ordering::Relaxed) < 100 {
            gate.with(|value| {
                if let Some(value) = value {
                    *value += 1;
                    std::hint::spin_loop();
                    *value += 1;
                }
            });
            changes += 1;
            std::thread::yield_now();
        }
        end.store(true, Ordering::Relaxed);
        assert!(lcore.join().is_ok());
        assert_eq!(gate.take(), Some(2 * changes));
    }
}

#[cfg(all(test, loom))]
mod model {
    use std::sync::Arc;

    use super::*;

    /// One lcore polls while a control thread takes the object out and looks at it.
    fn hand_over<B: Barrier + 'static>() {
        loom::model(|| {
            let gate = Arc::new(Gate::<u32, B>::new());
            gate.allow(Allow::Started);
            gate.allow(Allow::Attached);
            gate.install(0);
            let lcore = {
                let gate = Arc::clone(&gate);
                loom::thread::spawn(move || {
                    for _ in 0..2 {
                        // SAFETY: the only thread that enters this gate. loom itself reports when
                        // the other thread touches the slot at the same time.
                        let _ = unsafe { gate.enter(|value| *value += 1) };
                    }
                })
            };
            let taken = gate.take();
            assert!(taken.is_some());
            gate.install(10);
            assert!(lcore.join().is_ok());
            assert!(gate.take() >= Some(10));
        });
    }

    /// Stop and start of the port, against a polling lcore.
    #[test]
    fn a_stopped_port_is_not_polled() {
        loom::model(|| {
            let gate = Arc::new(Gate::<u32>::new());
            gate.allow(Allow::Started);
            gate.allow(Allow::Attached);
            gate.install(0);
            let lcore = {
                let gate = Arc::clone(&gate);
                loom::thread::spawn(move || {
                    // SAFETY: the only thread that enters this gate.
                    let _ = unsafe { gate.enter(|value| *value += 1) };
                })
            };
            gate.forbid(Allow::Started);
            let before = gate.with(|value| value.map(|value| *value));
            let after = gate.with(|value| value.map(|value| *value));
            assert_eq!(before, after, "polled after stop");
            assert!(lcore.join().is_ok());
        });
    }

    #[test]
    fn the_object_has_one_user_at_a_time() {
        hand_over::<Membarrier>();
    }

    #[test]
    #[should_panic]
    fn without_the_control_sides_barrier_the_model_fails() {
        hand_over::<NoBarrier>();
    }
}
