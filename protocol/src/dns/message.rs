//! As much of the DNS message format (RFC 1035, section 4; RFC 6891) as passing messages on takes: the header, the one
//! question, and the size of UDP answers that the asker takes. Everything else goes through unread.
//!
//! What is read here comes from containers and from the network. Nothing is followed: a name in a question has no
//! compression pointers, and the names of records are only stepped over.

/// The answer to the question exists; it may be that there is no record of the type asked for.
pub const NO_ERROR: u8 = 0;
/// The question was not understood.
pub const FORMAT_ERROR: u8 = 1;
/// The server has no answer, for a reason of its own.
pub const SERVER_FAILURE: u8 = 2;
/// There is no such name.
pub const NO_SUCH_NAME: u8 = 3;
/// The server does not do such things.
pub const NOT_IMPLEMENTED: u8 = 4;
/// The server does not want to answer.
pub const REFUSED: u8 = 5;

/// The type of an IPv4 address.
pub const A: u16 = 1;
/// The type of an IPv6 address.
pub const AAAA: u16 = 28;
/// The class of the Internet.
pub const IN: u16 = 1;
/// What a question says that takes every type, or every class.
pub const ANY: u16 = 255;
/// The type of the pseudo-record that carries what EDNS adds.
const OPT: u16 = 41;
/// Transfers of whole zones, which are answered by more than one message.
const TRANSFERS: std::ops::RangeInclusive<u16> = 251..=252;

/// Bytes of the header.
const HEADER: usize = 12;
/// The most a UDP answer may have for an asker that says nothing else, in bytes (RFC 1035, section 2.3.4).
const PLAIN_UDP: usize = 512;
/// The most a UDP packet carries over IPv4, in bytes.
const MOST_UDP: usize = 65_507;
/// The UDP size we say we take, where we say something ourselves: what passes every link unfragmented.
const OUR_UDP: u16 = 1232;

/// Bits of the header's second field.
const RESPONSE: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;
const RCODE: u16 = 0x000f;

/// Bytes that are no question we can pass on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a DNS question")]
pub struct NotAQuery {
    /// How to answer it; none when it is nothing that may be answered.
    pub code: Option<u8>,
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    bytes: Vec<u8>,
    /// Where the question ends.
    end: usize,
    name: String,
    kind: u16,
    class: u16,
    udp: Option<u16>,
}

impl Query {
    /// Reads a message that asks one question.
    ///
    /// # Errors
    /// When it is something else, with how to answer that.
    pub fn parse(bytes: &[u8]) -> Result<Query, NotAQuery> {
        let flags = field(bytes, 2).filter(|_| bytes.len() >= HEADER);
        // An answer is not answered: two servers could do that for ever.
        let Some(flags) = flags.filter(|flags| flags & RESPONSE == 0) else {
            return Err(NotAQuery { code: None });
        };
        let refuse = |code| NotAQuery { code: Some(code) };
        if flags & OPCODE != 0 {
            return Err(refuse(NOT_IMPLEMENTED));
        }
        let malformed = refuse(FORMAT_ERROR);
        let (name, end) = question(bytes).ok_or(malformed)?;
        // Both are before the question's end.
        let kind = field(bytes, end - 4).ok_or(malformed)?;
        let class = field(bytes, end - 2).ok_or(malformed)?;
        if TRANSFERS.contains(&kind) {
            return Err(refuse(NOT_IMPLEMENTED));
        }
        let udp = udp_size(bytes, end).ok_or(malformed)?;
        Ok(Query {
            bytes: bytes.to_vec(),
            end,
            name,
            kind,
            class,
            udp,
        })
    }

    /// The message as it came.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The name asked for, in lower case, without the dot at its end; empty for the root. Bytes that are no letters, digits
    /// or punctuation, and dots within a label, are written as in zone files (RFC 1035, section 5.1).
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type asked for.
    pub fn kind(&self) -> u16 {
        self.kind
    }

    /// The class asked for.
    pub fn class(&self) -> u16 {
        self.class
    }

    /// The most a UDP answer may have, in bytes.
    pub fn udp_limit(&self) -> usize {
        self.udp
            .map_or(PLAIN_UDP, |size| usize::from(size).clamp(PLAIN_UDP, MOST_UDP))
    }

    /// Whether `answer`, which came from a server that was asked this with the id `id`, is an answer to it.
    pub fn is_answered_by(&self, id: u16, answer: &[u8]) -> bool {
        let Some(flags) = field(answer, 2).filter(|_| answer.len() >= HEADER) else {
            return false;
        };
        if field(answer, 0) != Some(id) || flags & (RESPONSE | OPCODE) != RESPONSE {
            return false;
        }
        // Some servers that refuse a question do not repeat it.
        if field(answer, 4) == Some(0) {
            return !matches!(code(answer), NO_ERROR | NO_SUCH_NAME);
        }
        let Some((name, end)) = question(answer) else {
            return false;
        };
        name == self.name && answer.get(end - 4..end) == self.bytes.get(self.end - 4..self.end)
    }

    /// This question with another id.
    pub fn with_id(&self, id: u16) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        set_id(&mut bytes, id);
        bytes
    }

    /// `answer` with this question's id, as its asker expects it.
    pub fn adopt(&self, mut answer: Vec<u8>) -> Vec<u8> {
        set_id(&mut answer, field(&self.bytes, 0).unwrap_or_default());
        answer
    }

    /// An answer of our own: `code`, and a record for each of `records`, all of the type asked for, that nobody is to keep.
    pub fn answer(&self, code: u8, records: &[&[u8]]) -> Vec<u8> {
        let mut out = self.head(code, 0);
        let mut count = 0_u16;
        for record in records {
            let Ok(length) = u16::try_from(record.len()) else {
                continue;
            };
            // The name is that of the question, right behind the header. The time to live is 0.
            out.extend_from_slice(&[0xc0, HEADER as u8]);
            out.extend_from_slice(&self.kind.to_be_bytes());
            out.extend_from_slice(&IN.to_be_bytes());
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(record);
            count += 1;
        }
        out[6..8].copy_from_slice(&count.to_be_bytes());
        self.add_opt(&mut out);
        out
    }

    /// What to send in place of `answer` to an asker for whom it is too long: that there is more over TCP.
    pub fn truncated(&self, answer: &[u8]) -> Vec<u8> {
        let mut out = self.head(code(answer), TRUNCATED);
        self.add_opt(&mut out);
        out
    }

    fn head(&self, code: u8, more: u16) -> Vec<u8> {
        let mut out = header(&self.bytes, code, more);
        out[5] = 1;
        out.extend_from_slice(self.bytes.get(HEADER..self.end).unwrap_or_default());
        out
    }

    /// Whoever speaks EDNS is answered in EDNS (RFC 6891, section 6.1.1).
    fn add_opt(&self, out: &mut Vec<u8>) {
        if self.udp.is_some() {
            out.push(0);
            out.extend_from_slice(&OPT.to_be_bytes());
            out.extend_from_slice(&OUR_UDP.to_be_bytes());
            out.extend_from_slice(&[0; 6]);
            out[11] = 1;
        }
    }
}

/// The answer `code` to anything that may be answered at all, as much of a question as it is.
pub fn refusal(bytes: &[u8], code: u8) -> Option<Vec<u8>> {
    match Query::parse(bytes) {
        Ok(query) => Some(query.answer(code, &[])),
        Err(NotAQuery { code: None }) => None,
        Err(NotAQuery { code: Some(_) }) => Some(header(bytes, code, 0)),
    }
}

/// The response code of an answer; a message without one has failed.
pub fn code(answer: &[u8]) -> u8 {
    // Four bits.
    field(answer, 2).map_or(SERVER_FAILURE, |flags| (flags & RCODE) as u8)
}

/// Whether there is more of an answer over TCP.
pub fn is_truncated(answer: &[u8]) -> bool {
    field(answer, 2).is_some_and(|flags| flags & TRUNCATED != 0)
}

/// A header that answers that of `query`, without any records.
fn header(query: &[u8], code: u8, more: u16) -> Vec<u8> {
    let asked = field(query, 2).unwrap_or_default();
    let flags = asked & (OPCODE | RECURSION_DESIRED)
        | RESPONSE
        | RECURSION_AVAILABLE
        | more
        | (u16::from(code) & RCODE);
    let mut out = vec![0; HEADER];
    out[..2].copy_from_slice(&field(query, 0).unwrap_or_default().to_be_bytes());
    out[2..4].copy_from_slice(&flags.to_be_bytes());
    out
}

fn set_id(bytes: &mut [u8], id: u16) {
    if let Some(place) = bytes.first_chunk_mut() {
        *place = id.to_be_bytes();
    }
}

/// The big-endian number at `place`.
fn field(bytes: &[u8], place: usize) -> Option<u16> {
    let pair = bytes.get(place..place.checked_add(2)?)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}

/// The name and the end of the only question.
fn question(bytes: &[u8]) -> Option<(String, usize)> {
    if field(bytes, 4)? != 1 {
        return None;
    }
    let mut name = String::new();
    let mut place = HEADER;
    loop {
        let length = usize::from(*bytes.get(place)?);
        place += 1;
        match length {
            0 => break,
            1..=63 => {}
            // A pointer, or what was never defined.
            _ => return None,
        }
        let label = bytes.get(place..place + length)?;
        place += length;
        // RFC 1035, section 2.3.4: 255 bytes with the lengths.
        if place - HEADER > 254 {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        add_label(&mut name, label);
    }
    let end = place + 4;
    (bytes.len() >= end).then_some((name, end))
}

fn add_label(name: &mut String, label: &[u8]) {
    for byte in label {
        match byte {
            b'.' | b'\\' => name.extend(['\\', char::from(*byte)]),
            0x21..=0x7e => name.push(char::from(byte.to_ascii_lowercase())),
            _ => name.push_str(&format!("\\{byte:03}")),
        }
    }
}

/// The UDP size in the records behind the question, if there is one; none of the outer kind when the records are not whole.
fn udp_size(bytes: &[u8], question_end: usize) -> Option<Option<u16>> {
    let count = |place| field(bytes, place).map(u32::from);
    let before = count(6)? + count(8)?;
    let all = before + count(10)?;
    let mut place = question_end;
    let mut size = None;
    for record in 0..all {
        place = after_name(bytes, place)?;
        let kind = field(bytes, place)?;
        let class = field(bytes, place + 2)?;
        let length = usize::from(field(bytes, place + 8)?);
        place += 10 + length;
        if place > bytes.len() {
            return None;
        }
        if kind == OPT && record >= before {
            size = Some(class);
        }
    }
    Some(size)
}

fn after_name(bytes: &[u8], mut place: usize) -> Option<usize> {
    loop {
        let length = *bytes.get(place)?;
        match length {
            0 => return Some(place + 1),
            1..=63 => place += 1 + usize::from(length),
            0xc0.. => return Some(place + 2),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn query(name: &str, kind: u16, udp: Option<u16>) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(udp.is_some())];
        for label in name.split('.').filter(|label| !label.is_empty()) {
            bytes.push(u8::try_from(label.len()).unwrap());
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&IN.to_be_bytes());
        if let Some(size) = udp {
            bytes.extend_from_slice(&[0, 0, 41]);
            bytes.extend_from_slice(&size.to_be_bytes());
            bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0]);
        }
        bytes
    }

    #[test]
    fn a_question_is_read_without_regard_to_case() {
        let query = Query::parse(&query("Host.Docker.INTERNAL", AAAA, Some(1400))).unwrap();
        assert_eq!(query.name(), "host.docker.internal");
        assert_eq!((query.kind(), query.class()), (AAAA, IN));
        assert_eq!(query.udp_limit(), 1400);
        let root = Query::parse(&super::tests::query("", 2, None)).unwrap();
        assert_eq!((root.name(), root.udp_limit()), ("", 512));
        let small = Query::parse(&super::tests::query("a", A, Some(100))).unwrap();
        assert_eq!(small.udp_limit(), 512);
    }

    #[test]
    fn a_dot_in_a_label_is_no_dot_between_labels() {
        let mut bytes = query("aXb", A, None);
        bytes[14] = b'.';
        assert_eq!(Query::parse(&bytes).unwrap().name(), "a\\.b");
        bytes[14] = 0xff;
        assert_eq!(Query::parse(&bytes).unwrap().name(), "a\\255b");
    }

    #[test]
    fn what_is_no_question_is_answered_as_it_should_be() {
        let good = query("a.example", A, None);
        let refused = |change: fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            Query::parse(&bytes).unwrap_err().code
        };
        assert_eq!(refused(|bytes| bytes.truncate(11)), None);
        assert_eq!(refused(|bytes| bytes[2] |= 0x80), None, "an answer");
        assert_eq!(
            refused(|bytes| bytes[2] |= 0x28),
            Some(NOT_IMPLEMENTED),
            "an update"
        );
        assert_eq!(refused(|bytes| bytes[5] = 2), Some(FORMAT_ERROR), "two questions");
        assert_eq!(refused(|bytes| bytes[12] = 0xc0), Some(FORMAT_ERROR), "a pointer");
        assert_eq!(
            refused(|bytes| bytes[11] = 1),
            Some(FORMAT_ERROR),
            "a record that is not there"
        );
        assert_eq!(refused(|bytes| bytes.truncate(20)), Some(FORMAT_ERROR));
        let end = good.len();
        let mut transfer = good.clone();
        transfer[end - 3] = 252;
        assert_eq!(Query::parse(&transfer).unwrap_err().code, Some(NOT_IMPLEMENTED));
        // 255 bytes are the most a name may have.
        let label = "a".repeat(63);
        let longest = [&label[..], &label, &label, &label[..61]].join(".");
        assert!(Query::parse(&query(&longest, A, None)).is_ok());
        assert!(Query::parse(&query(&format!("{longest}b"), A, None)).is_err());
    }

    #[test]
    fn only_an_answer_to_the_question_is_taken() {
        let asked = Query::parse(&query("a.example", A, None)).unwrap();
        let answer = asked.answer(NO_ERROR, &[&[192, 0, 2, 1]]);
        assert!(asked.is_answered_by(0x1234, &answer));
        assert!(!asked.is_answered_by(0x1235, &answer));
        assert!(!asked.is_answered_by(0x1234, asked.bytes()), "a question");
        let other = |name, kind| {
            let other = Query::parse(&query(name, kind, None)).unwrap();
            asked.is_answered_by(0x1234, &other.answer(NO_ERROR, &[]))
        };
        assert!(other("A.EXAMPLE", A));
        assert!(!other("b.example", A));
        assert!(!other("a.example", AAAA));
        // A refusal without the question is one; an answer without it is not.
        assert!(asked.is_answered_by(0x1234, &header(asked.bytes(), REFUSED, 0)));
        assert!(!asked.is_answered_by(0x1234, &header(asked.bytes(), NO_ERROR, 0)));
    }

    #[test]
    fn answers_of_our_own_are_well_formed() {
        let asked = Query::parse(&query("h.example", A, Some(4096))).unwrap();
        let answer = asked.answer(NO_ERROR, &[&[192, 0, 2, 1], &[192, 0, 2, 2]]);
        assert_eq!(answer[..12], [0x12, 0x34, 0x81, 0x80, 0, 1, 0, 2, 0, 0, 0, 1]);
        let tail = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 192, 0, 2, 2];
        assert_eq!(answer[answer.len() - 11 - 16..answer.len() - 11], tail);
        assert_eq!(answer[answer.len() - 11..], [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        let short = asked.truncated(&answer);
        assert!(is_truncated(&short) && !is_truncated(&answer));
        assert!(asked.is_answered_by(0x1234, &short));
        assert_eq!(short[..12], [0x12, 0x34, 0x83, 0x80, 0, 1, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn a_refusal_repeats_what_can_be_repeated() {
        let good = query("h.example", A, None);
        let refused = refusal(&good, SERVER_FAILURE).unwrap();
        assert_eq!(code(&refused), SERVER_FAILURE);
        assert_eq!(refused[12..], good[12..]);
        let mut two = good;
        two[5] = 2;
        assert_eq!(refusal(&two, FORMAT_ERROR).unwrap().len(), 12);
        assert_eq!(refusal(&refused, SERVER_FAILURE), None);
        assert_eq!(refusal(b"", SERVER_FAILURE), None);
    }

    proptest! {
        #[test]
        fn names_of_questions_survive(
            labels in proptest::collection::vec("[a-z0-9_-]{1,20}", 0..8),
            kind in 1_u16..200,
            udp in any::<Option<u16>>(),
            id: u16,
        ) {
            let name = labels.join(".");
            let query = Query::parse(&query(&name, kind, udp)).unwrap();
            prop_assert_eq!(query.name(), name);
            prop_assert_eq!(query.kind(), kind);
            let asked = Query::parse(&query.with_id(id)).unwrap();
            let answer = asked.answer(NO_ERROR, &[]);
            prop_assert!(query.is_answered_by(id, &answer));
            prop_assert_eq!(&query.adopt(answer)[..2], &[0x12, 0x34]);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..80),
            question: bool,
        ) {
            if question && bytes.len() > HEADER {
                (bytes[2], bytes[4], bytes[5]) = (0, 0, 1);
            }
            let _ = (code(&bytes), is_truncated(&bytes), refusal(&bytes, SERVER_FAILURE));
            let asked = Query::parse(&query("a.example", A, Some(1400))).unwrap();
            let _ = (asked.is_answered_by(0, &bytes), asked.truncated(&bytes), asked.adopt(bytes.clone()));
            if let Ok(query) = Query::parse(&bytes) {
                prop_assert_eq!(query.bytes(), &bytes[..]);
                prop_assert!(Query::parse(&query.with_id(1)).is_ok());
                let again = query.answer(NO_ERROR, &[]);
                prop_assert!(again.len() <= bytes.len() + 11);
            }
        }
    }
}
