//! How far the current request of a connection has got. The end of a client's stream means different things before and
//! after its request is with dockerd.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// Where an exchange of one request and one response is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// No request is under way.
    Idle,
    /// A request is being sent to dockerd.
    Sending,
    /// The whole request has been written to dockerd's stream; the response may be anywhere up to its end.
    Sent,
}

/// The state of one client connection's current exchange.
#[derive(Debug)]
pub(super) struct Exchange {
    body_ended: AtomicBool,
    written: AtomicBool,
    stage: watch::Sender<Stage>,
}

impl Default for Exchange {
    fn default() -> Self {
        Exchange {
            body_ended: AtomicBool::new(false),
            written: AtomicBool::new(false),
            stage: watch::Sender::new(Stage::Idle),
        }
    }
}

impl Exchange {
    /// A new request begins. `has_body` says that [`Exchange::body_ended`] will be called when its body has been taken.
    pub(super) fn begin(&self, has_body: bool) {
        self.written.store(false, Ordering::Release);
        self.body_ended.store(!has_body, Ordering::Release);
        self.stage.send_replace(Stage::Sending);
    }

    /// hyper has taken the last of the request's body.
    pub(super) fn body_ended(&self) {
        self.body_ended.store(true, Ordering::Release);
    }

    /// hyper writes to dockerd's stream. A flush only counts after that: hyper also flushes when it has nothing to do.
    pub(super) fn writing(&self) {
        self.written.store(true, Ordering::Release);
    }

    /// hyper has written everything that it held.
    pub(super) fn flushed(&self) {
        if self.body_ended.load(Ordering::Acquire) && self.written.load(Ordering::Acquire) {
            self.stage.send_if_modified(|stage| {
                *stage == Stage::Sending && std::mem::replace(stage, Stage::Sent) != Stage::Sent
            });
        }
    }

    /// The response is over, or there will be none.
    pub(super) fn end(&self) {
        self.stage.send_replace(Stage::Idle);
    }

    pub(super) fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Waits until `wanted` holds for the stage.
    pub(super) async fn reach(&self, wanted: impl FnMut(&Stage) -> bool) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.stage.subscribe().wait_for(wanted).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_sent_when_its_last_byte_was_flushed_and_not_before() {
        let exchange = Exchange::default();
        exchange.begin(true);
        exchange.flushed();
        exchange.writing();
        exchange.flushed();
        assert_eq!(exchange.stage(), Stage::Sending, "the head alone");
        exchange.body_ended();
        exchange.flushed();
        assert_eq!(exchange.stage(), Stage::Sent);
        exchange.end();
        exchange.flushed();
        assert_eq!(exchange.stage(), Stage::Idle);
    }

    #[test]
    fn an_idle_flush_does_not_send_a_request_without_a_body() {
        let exchange = Exchange::default();
        exchange.begin(false);
        exchange.flushed();
        assert_eq!(exchange.stage(), Stage::Sending);
        exchange.writing();
        exchange.flushed();
        assert_eq!(exchange.stage(), Stage::Sent);
    }
}
