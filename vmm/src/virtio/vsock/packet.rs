//! The header of a vsock packet (virtio 1.2, 5.10.6) and the numbers in it.

/// Bytes of a header.
pub(super) const HEADER_SIZE: usize = 44;
/// The largest payload the device puts in one packet. Linux sends no more than this either.
pub(super) const MAX_PAYLOAD: usize = 64 * 1024;
/// The context id of the host (5.10.4).
pub(super) const HOST_CID: u64 = 2;
/// The only socket type here: a byte stream.
pub(super) const TYPE_STREAM: u16 = 1;

/// SHUTDOWN: the sender will receive no more (5.10.6.5).
pub(super) const SHUTDOWN_RCV: u32 = 1;
/// SHUTDOWN: the sender will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// SHUTDOWN: both of them; the peer answers with RST.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RCV | SHUTDOWN_SEND;

/// What a packet asks for (5.10.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Op {
    /// Opens a connection.
    Request = 1,
    /// Accepts one.
    Response = 2,
    /// Ends or refuses one.
    Rst = 3,
    /// Ends one or both directions, see the flags.
    Shutdown = 4,
    /// Carries data.
    Rw = 5,
    /// Says how much may be sent; so does every other packet.
    CreditUpdate = 6,
    /// Asks for a credit update.
    CreditRequest = 7,
}

impl Op {
    /// The operation with this number, if there is one.
    pub(super) fn from_number(number: u16) -> Option<Op> {
        Some(match number {
            1 => Op::Request,
            2 => Op::Response,
            3 => Op::Rst,
            4 => Op::Shutdown,
            5 => Op::Rw,
            6 => Op::CreditUpdate,
            7 => Op::CreditRequest,
            _ => return None,
        })
    }
}

/// A packet's header, in the host's byte order. Any field can hold anything when it comes from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Who sends it.
    pub(super) src_cid: u64,
    /// Who is to have it.
    pub(super) dst_cid: u64,
    /// The sender's port.
    pub(super) src_port: u32,
    /// The receiver's port.
    pub(super) dst_port: u32,
    /// Bytes of payload that follow the header.
    pub(super) len: u32,
    /// The socket type.
    pub(super) socket_type: u16,
    /// The operation's number.
    pub(super) op: u16,
    /// Flags of the operation.
    pub(super) flags: u32,
    /// The sender's receive buffer, in bytes.
    pub(super) buf_alloc: u32,
    /// How many bytes the sender has taken out of its receive buffer so far, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// Reads a header.
    pub(super) fn parse(bytes: &[u8; HEADER_SIZE]) -> Header {
        Header {
            src_cid: u64::from_le_bytes(field(bytes, 0)),
            dst_cid: u64::from_le_bytes(field(bytes, 8)),
            src_port: u32::from_le_bytes(field(bytes, 16)),
            dst_port: u32::from_le_bytes(field(bytes, 20)),
            len: u32::from_le_bytes(field(bytes, 24)),
            socket_type: u16::from_le_bytes(field(bytes, 28)),
            op: u16::from_le_bytes(field(bytes, 30)),
            flags: u32::from_le_bytes(field(bytes, 32)),
            buf_alloc: u32::from_le_bytes(field(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(field(bytes, 40)),
        }
    }

    /// The header as it stands in guest memory.
    pub(super) fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.socket_type.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The operation, if it is a known one.
    pub(super) fn operation(&self) -> Option<Op> {
        Op::from_number(self.op)
    }

    /// The RST that answers this packet when no connection can (5.10.6.4).
    pub(super) fn reset_reply(&self) -> Header {
        Header {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            len: 0,
            socket_type: self.socket_type,
            op: Op::Rst as u16,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }
}

fn field<const N: usize>(bytes: &[u8; HEADER_SIZE], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_layout_is_the_specification_s() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: 2,
            src_port: 0x1112_1314,
            dst_port: 1024,
            len: 5,
            socket_type: TYPE_STREAM,
            op: Op::Rw as u16,
            flags: 3,
            buf_alloc: 0x4_0000,
            fwd_cnt: 0xffff_fffe,
        };
        let bytes = header.to_bytes();
        assert_eq!(bytes[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[16..20], [0x14, 0x13, 0x12, 0x11]);
        assert_eq!(bytes[24..32], [5, 0, 0, 0, 1, 0, 5, 0]);
        assert_eq!(bytes[40..44], [0xfe, 0xff, 0xff, 0xff]);
        assert_eq!(Header::parse(&bytes), header);
    }

    #[test]
    fn operations_have_the_specification_s_numbers() {
        for number in 1..=7 {
            assert_eq!(Op::from_number(number).unwrap() as u16, number);
        }
        assert_eq!(Op::from_number(0), None);
        assert_eq!(Op::from_number(8), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_and_come_back(bytes in proptest::array::uniform32(any::<u8>()),
                                                rest in proptest::array::uniform12(any::<u8>())) {
            let mut all = [0; HEADER_SIZE];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&rest);
            prop_assert_eq!(Header::parse(&all).to_bytes(), all);
        }
    }
}
