//! Credit flow control (virtio 1.2, 5.10.6.3): who may send how much.
//!
//! All counters are modulo 2^32. What a peer reports is only believed where it makes sense; a counter that jumps is
//! ignored rather than allowed to open the window.

use std::collections::VecDeque;

/// What each packet on its way to a Linux guest is taken to cost of its receive buffer at least. The guest limits the
/// number of packets it queues as well as their bytes, and resets a connection that goes over: it counts about 576 bytes
/// for the bookkeeping of each.
const PACKET_COST: u32 = 1024;
/// Bounds of the number of packets on their way to the guest, whatever buffer it announces.
const MIN_PACKETS: usize = 16;
const MAX_PACKETS: usize = 2048;

/// Counts what we send: how much room the peer still has.
#[derive(Debug, Default)]
pub(super) struct SendCredit {
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    tx_cnt: u32,
    /// For each packet the peer has not taken out of its buffer: `tx_cnt` at its end.
    packets: VecDeque<u32>,
}

impl SendCredit {
    /// Bytes that may be sent now.
    pub(super) fn available(&self) -> u32 {
        let limit = (self.peer_buf_alloc / PACKET_COST) as usize;
        if self.packets.len() >= limit.clamp(MIN_PACKETS, MAX_PACKETS) {
            return 0;
        }
        self.peer_buf_alloc.saturating_sub(self.outstanding())
    }

    /// Bytes sent that the peer has not taken out of its buffer.
    pub(super) fn outstanding(&self) -> u32 {
        self.tx_cnt.wrapping_sub(self.peer_fwd_cnt)
    }

    /// The receive buffer the peer announced last.
    pub(super) fn peer_buf_alloc(&self) -> u32 {
        self.peer_buf_alloc
    }

    /// Takes note of a packet of `length` bytes, at most [`Self::available`].
    pub(super) fn sent(&mut self, length: u32) {
        self.tx_cnt = self.tx_cnt.wrapping_add(length);
        self.packets.push_back(self.tx_cnt);
    }

    /// Takes note of what a packet of the peer says. A `fwd_cnt` that goes backwards or beyond what was sent is ignored.
    pub(super) fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.peer_buf_alloc = buf_alloc;
        let taken = fwd_cnt.wrapping_sub(self.peer_fwd_cnt);
        if taken == 0 || taken > self.outstanding() {
            return;
        }
        let before = self.peer_fwd_cnt;
        self.peer_fwd_cnt = fwd_cnt;
        while let Some(end) = self.packets.front()
            && end.wrapping_sub(before) <= taken
        {
            self.packets.pop_front();
        }
    }
}

/// Counts what we receive: the peer's bytes that have not reached their reader yet.
#[derive(Debug)]
pub(super) struct ReceiveCredit {
    buf_alloc: u32,
    rx_cnt: u32,
    fwd_cnt: u32,
    /// `fwd_cnt` as the peer knows it.
    told_fwd_cnt: u32,
}

/// The peer sent more than it was allowed to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CreditExceeded;

impl ReceiveCredit {
    /// A buffer of `buf_alloc` bytes, empty.
    pub(super) fn new(buf_alloc: u32) -> ReceiveCredit {
        ReceiveCredit {
            buf_alloc,
            rx_cnt: 0,
            fwd_cnt: 0,
            told_fwd_cnt: 0,
        }
    }

    /// The size of the buffer.
    pub(super) fn buf_alloc(&self) -> u32 {
        self.buf_alloc
    }

    /// Takes note of `length` bytes from the peer.
    pub(super) fn received(&mut self, length: u32) -> Result<(), CreditExceeded> {
        let buffered = self.rx_cnt.wrapping_sub(self.fwd_cnt);
        if length > self.buf_alloc - buffered {
            return Err(CreditExceeded);
        }
        self.rx_cnt = self.rx_cnt.wrapping_add(length);
        Ok(())
    }

    /// Takes note of `length` bytes that left the buffer, received before.
    pub(super) fn forwarded(&mut self, length: u32) {
        debug_assert!(length <= self.rx_cnt.wrapping_sub(self.fwd_cnt));
        self.fwd_cnt = self.fwd_cnt.wrapping_add(length);
    }

    /// What to write into a packet's (`buf_alloc`, `fwd_cnt`), which tells the peer.
    pub(super) fn tell(&mut self) -> (u32, u32) {
        self.told_fwd_cnt = self.fwd_cnt;
        (self.buf_alloc, self.fwd_cnt)
    }

    /// Whether the peer should hear of room it does not know of: as soon as half of the window looks used to it.
    ///
    /// `peer_buf_alloc` because Linux never has more on its way than its own receive buffer holds: that is the window when
    /// it is smaller than ours, and waiting for half of ours would wait forever.
    pub(super) fn update_due(&self, peer_buf_alloc: u32) -> bool {
        let window = self.buf_alloc.min(peer_buf_alloc);
        let looks_used = self.rx_cnt.wrapping_sub(self.told_fwd_cnt);
        self.fwd_cnt != self.told_fwd_cnt && u64::from(looks_used) * 2 >= u64::from(window)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sender(buf_alloc: u32, start: u32) -> SendCredit {
        SendCredit {
            peer_buf_alloc: buf_alloc,
            peer_fwd_cnt: start,
            tx_cnt: start,
            packets: VecDeque::new(),
        }
    }

    #[test]
    fn counters_wrap() {
        let mut credit = sender(100_000, u32::MAX - 10);
        credit.sent(30_000);
        assert_eq!(credit.available(), 70_000);
        credit.update(100_000, (u32::MAX - 10).wrapping_add(30_000));
        assert_eq!((credit.available(), credit.outstanding()), (100_000, 0));
        assert!(credit.packets.is_empty());
    }

    #[test]
    fn a_shrinking_buffer_leaves_no_credit() {
        let mut credit = sender(1000, 0);
        credit.sent(800);
        credit.update(500, 0);
        assert_eq!(credit.available(), 0);
        credit.update(500, 800);
        assert_eq!(credit.available(), 500);
    }

    #[test]
    fn nonsense_counts_open_nothing() {
        let mut credit = sender(1000, 0);
        credit.sent(400);
        credit.update(1000, 401);
        assert_eq!(credit.available(), 600, "beyond what was sent");
        credit.update(1000, 300);
        credit.update(1000, 200);
        assert_eq!(credit.available(), 900, "backwards");
    }

    #[test]
    fn many_small_packets_wait_for_the_reader() {
        let mut credit = sender(64 * 1024, 0);
        for _ in 0..64 {
            assert!(credit.available() > 0);
            credit.sent(1);
        }
        assert_eq!(credit.available(), 0);
        credit.update(64 * 1024, 1);
        assert_eq!(credit.available(), 64 * 1024 - 63);
    }

    #[test]
    fn a_peer_with_a_smaller_window_is_told_in_time() {
        let mut credit = ReceiveCredit::new(256 * 1024);
        credit.received(64 * 1024).unwrap();
        credit.forwarded(64 * 1024);
        assert!(credit.update_due(64 * 1024), "it has nothing left");
        assert!(!credit.update_due(256 * 1024), "it has three quarters left");
    }

    #[test]
    fn too_much_is_refused_and_not_counted() {
        let mut credit = ReceiveCredit::new(10);
        credit.received(10).unwrap();
        assert_eq!(credit.received(1), Err(CreditExceeded));
        credit.forwarded(4);
        credit.received(4).unwrap();
        assert_eq!(credit.received(u32::MAX), Err(CreditExceeded));
    }

    proptest! {
        /// Two ends that follow the rules: the sender never overruns the receiver, and never waits forever.
        #[test]
        fn a_pair_never_overruns_and_never_stalls(
            start in prop_oneof![Just(0), Just(u32::MAX - 5000), any::<u32>()],
            window in 1u32..20_000,
            steps in proptest::collection::vec((any::<bool>(), 1u32..5000), 1..400),
        ) {
            let mut tx = sender(window, start);
            let mut rx = ReceiveCredit::new(window);
            rx.rx_cnt = start;
            rx.fwd_cnt = start;
            rx.told_fwd_cnt = start;
            let mut buffered = 0;
            for (send, amount) in steps {
                if send {
                    let length = amount.min(tx.available());
                    if length > 0 {
                        tx.sent(length);
                        prop_assert!(rx.received(length).is_ok());
                        buffered += length;
                    }
                } else {
                    let length = amount.min(buffered);
                    rx.forwarded(length);
                    buffered -= length;
                }
                if rx.update_due(window) {
                    let (buf_alloc, fwd_cnt) = rx.tell();
                    tx.update(buf_alloc, fwd_cnt);
                }
                if buffered == 0 && tx.packets.len() < MIN_PACKETS {
                    prop_assert!(tx.available() > 0, "an empty receiver and no credit");
                }
            }
        }
    }
}
