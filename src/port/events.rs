//! Which vrings changed since the application last asked.
#![forbid(unsafe_code)]

/// A change of a vring, as the application sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueEvent {
    /// Number of the queue, in its direction.
    pub queue: u16,
    /// The queue receives: its vring is one that the driver transmits on.
    pub rx: bool,
    /// It can be used now.
    pub enable: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Vring {
    current: bool,
    reported: bool,
}

/// Two facts of each vring: what it is, and what the application was told. A vring that goes off
/// and on between two questions has nothing to tell.
#[derive(Debug, Default)]
pub(super) struct QueueEvents {
    /// Up to the highest vring that was ever seen.
    vrings: Vec<Vring>,
    /// Where the next search starts, so that no vring hides another.
    next: usize,
}

impl QueueEvents {
    /// Notes the state of vring `index`; whether that is news.
    pub(super) fn set(&mut self, index: u16, ready: bool) -> bool {
        let index = usize::from(index);
        if self.vrings.len() <= index {
            self.vrings.resize(index + 1, Vring::default());
        }
        let Some(vring) = self.vrings.get_mut(index) else {
            return false;
        };
        std::mem::replace(&mut vring.current, ready) != ready
    }

    /// The next change to report; it counts as reported.
    pub(super) fn take(&mut self) -> Option<QueueEvent> {
        let count = self.vrings.len();
        for _ in 0..count {
            let index = self.next % count;
            self.next = index + 1;
            let Some(vring) = self.vrings.get_mut(index) else {
                continue;
            };
            if vring.current != vring.reported {
                vring.reported = vring.current;
                return Some(QueueEvent {
                    queue: u16::try_from(index / 2).unwrap_or(u16::MAX),
                    rx: index % 2 == 1,
                    enable: vring.current,
                });
            }
        }
        None
    }

    /// Forgets everything: the device is gone, which its link tells.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(queue: u16, rx: bool, enable: bool) -> Option<QueueEvent> {
        Some(QueueEvent { queue, rx, enable })
    }

    #[test]
    fn odd_vrings_are_the_queues_that_receive() {
        let mut events = QueueEvents::default();
        assert!(events.set(0, true));
        assert!(events.set(5, true));

        assert_eq!(events.take(), event(0, false, true));
        assert_eq!(events.take(), event(2, true, true));
        assert_eq!(events.take(), None);
    }

    #[test]
    fn the_same_state_again_is_no_news() {
        let mut events = QueueEvents::default();
        assert!(!events.set(0, false));
        assert!(events.set(0, true));
        assert!(!events.set(0, true));
    }

    #[test]
    fn off_and_on_again_leaves_nothing_to_report() {
        let mut events = QueueEvents::default();
        events.set(1, true);
        events.take();

        events.set(1, false);
        events.set(1, true);

        assert_eq!(events.take(), None);
    }

    #[test]
    fn a_busy_vring_does_not_hide_the_next_one() {
        let mut events = QueueEvents::default();
        events.set(0, true);
        events.set(1, true);
        assert_eq!(events.take(), event(0, false, true));

        events.set(0, false);

        assert_eq!(events.take(), event(0, true, true));
        assert_eq!(events.take(), event(0, false, false));
    }

    #[test]
    fn a_device_that_goes_takes_its_events_with_it() {
        let mut events = QueueEvents::default();
        events.set(0, true);
        events.clear();
        assert_eq!(events.take(), None);
        assert!(events.set(0, true));
    }
}
