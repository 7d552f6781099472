//! A frontend that clears the log while we set it, in every order.
#![forbid(unsafe_code)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering, fence};

use super::{Word, set_bits};

impl Word for AtomicU64 {
    fn load(&self) -> u64 {
        AtomicU64::load(self, Ordering::Relaxed)
    }

    fn or(&self, bits: u64) {
        self.fetch_or(bits, Ordering::Release);
    }
}

/// One page that is written twice, and its bit in the log.
#[derive(Default)]
struct Guest {
    page: AtomicU64,
    word: AtomicU64,
}

/// What the frontend does now and then: `sent` is the page as the other end has it.
fn send(guest: &Guest, sent: &mut u64) {
    if guest.word.load(Ordering::Relaxed) != 0 {
        // QEMU's exchange is a full barrier.
        guest.word.swap(0, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        *sent = guest.page.load(Ordering::Relaxed);
    }
}

/// We write the page and mark it, twice, while the frontend looks for what it has to send; it looks
/// once more when we have ended. What it sent last must be what the page holds.
fn migrate(full_fence: bool) {
    loom::model(move || {
        let guest = Arc::new(Guest::default());
        let ours = Arc::clone(&guest);
        let backend = loom::thread::spawn(move || {
            for value in [1, 2] {
                ours.page.store(value, Ordering::Relaxed);
                if full_fence {
                    fence(Ordering::SeqCst);
                }
                set_bits(&ours.word, 1);
            }
        });
        let theirs = Arc::clone(&guest);
        let frontend = loom::thread::spawn(move || {
            let mut sent = 0;
            send(&theirs, &mut sent);
            sent
        });
        let mut sent = frontend.join().unwrap();
        backend.join().unwrap();
        send(&guest, &mut sent);
        assert_eq!(sent, 2, "the other end has an old page");
    });
}

#[test]
fn a_page_that_is_written_again_is_sent_again() {
    migrate(true);
}

#[test]
#[should_panic(expected = "the other end has an old page")]
fn without_a_full_fence_the_model_loses_a_write() {
    migrate(false);
}
