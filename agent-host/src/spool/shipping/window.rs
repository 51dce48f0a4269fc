//! What of one spool is under way on one connection.

use std::collections::VecDeque;
use std::time::Duration;

use devfleet_shared::backoff::Backoff;
use tokio::time::Instant;

/// How many bytes of one spool may be unanswered.
pub(super) const WINDOW_BYTES: u64 = 1024 * 1024;

const AGAIN: Backoff = Backoff { first: Duration::from_millis(100), ceiling: Duration::from_secs(10) };

/// Sent and answered offsets of one spool.
#[derive(Debug)]
pub(super) struct Window {
    sent: u64,
    answered: u64,
    /// Where each unanswered chunk ends.
    under_way: VecDeque<u64>,
    /// The controller has less than it was sent: go back once nothing is under way any more.
    is_short: bool,
    /// Short answers in a row, and how long to wait because of them.
    shorts: u32,
    rest_until: Option<Instant>,
}

impl Window {
    pub(super) fn new(acknowledged: u64) -> Window {
        let (sent, answered) = (acknowledged, acknowledged);
        Window { sent, answered, under_way: VecDeque::new(), is_short: false, shorts: 0, rest_until: None }
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    pub(super) fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    pub(super) fn may_send(&self, synced: u64, now: Instant) -> bool {
        let rested = self.rest_until.is_none_or(|until| now >= until);
        rested && !self.is_short && self.sent < synced && self.sent - self.answered.min(self.sent) < WINDOW_BYTES
    }

    pub(super) fn send(&mut self, bytes: u64) {
        self.sent += bytes;
        self.under_way.push_back(self.sent);
    }

    /// Takes one answer: the oldest chunk's, or one for several at once.
    pub(super) fn answer(&mut self, offset: u64, now: Instant) {
        let oldest = self.under_way.pop_front();
        while self.under_way.front().is_some_and(|end| *end <= offset) {
            self.under_way.pop_front();
        }
        self.answered = offset;
        match oldest {
            Some(end) if offset < end => self.is_short = true,
            _ => {
                self.sent = self.sent.max(offset);
                self.shorts = 0;
            }
        }
        if self.is_short && self.under_way.is_empty() {
            self.is_short = false;
            self.sent = offset;
            self.shorts += 1;
            self.rest_until = (self.shorts > 1).then(|| now + AGAIN.pause(self.shorts - 1, Backoff::jitter()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_short_answer_rewinds_once_nothing_is_under_way() {
        let now = Instant::now();
        let mut window = Window::new(10);
        window.send(5);
        window.send(5);
        window.answer(12, now);
        assert!(!window.may_send(100, now), "the second chunk's answer is still to come");
        window.answer(12, now);
        assert_eq!((window.sent(), window.is_idle()), (12, true));
        assert!(window.may_send(100, now));
        window.send(5);
        window.answer(12, now);
        assert!(!window.may_send(100, now), "the second short answer in a row is not hurried");
        assert!(window.may_send(100, now + AGAIN.ceiling));
    }

    #[tokio::test]
    async fn one_answer_may_stand_for_several_chunks_and_for_more_than_was_sent() {
        let now = Instant::now();
        let mut window = Window::new(0);
        (0..4).for_each(|_| window.send(WINDOW_BYTES / 4));
        assert!(!window.may_send(u64::MAX, now), "the window is full");
        window.answer(WINDOW_BYTES, now);
        assert!(window.is_idle() && window.may_send(u64::MAX, now));
        window.send(1);
        window.answer(2 * WINDOW_BYTES, now);
        assert_eq!(window.sent(), 2 * WINDOW_BYTES);
    }
}
