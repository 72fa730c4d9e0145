//! Arbitrary bytes as questions for names, as answers to one, and as the stream of them.

use super::stream::{Pieces, run};
use crate::dns::Numbered;
use crate::dns::message::{self, Query};

/// A question for the A records of `a.b`, with the id 7.
const QUESTION: &[u8] = &[
    0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 1, b'b', 0, 0, 1, 0, 1,
];

/// The body of the fuzz target `dns`. The first byte says how the stream is cut into pieces.
pub fn fuzz_dns(bytes: &[u8]) {
    let (piece, bytes) = bytes
        .split_first()
        .map_or((1, bytes), |(first, rest)| (*first, rest));
    let mut pieces = Pieces::new(bytes, piece.into());
    while let Ok(Some(numbered)) = run(Numbered::read(&mut pieces)) {
        question(&numbered.message);
        let again = numbered.encode().expect("what was read can be written");
        assert_eq!(again.len(), 6 + numbered.message.len());
    }
    question(bytes);
    if let Ok(asked) = Query::parse(QUESTION) {
        let taken = asked.is_answered_by(7, bytes);
        assert!(!taken || bytes.len() >= 12);
        assert!(asked.is_answered_by(7, &asked.truncated(bytes)));
    }
}

/// Whatever is taken for a question can be passed on, and answered with something that answers it.
fn question(bytes: &[u8]) {
    let refused = message::refusal(bytes, message::SERVER_FAILURE);
    let Ok(query) = Query::parse(bytes) else { return };
    assert_eq!(
        refused.map(|refused| message::code(&refused)),
        Some(message::SERVER_FAILURE)
    );
    let asked = query.with_id(9);
    let same = Query::parse(&asked).expect("the id changes nothing");
    assert_eq!(same.name(), query.name());
    let answer = same.answer(message::NO_ERROR, &[&[192, 0, 2, 1]]);
    assert!(query.is_answered_by(9, &answer));
    assert_eq!(query.adopt(answer)[..2], bytes[..2]);
}
