//! Changing a few strings of a JSON text and nothing else.
//!
//! A body that is parsed and written anew loses what the parser does not keep: the form of numbers, members that stand
//! twice, escapes. So the values are only looked at where they stand, and the few that change are cut out and replaced.
//!
//! Member names are found as dockerd finds them, whatever their case (Go's `encoding/json`). What is no JSON, or not of the
//! form that is looked for, is left to dockerd to complain about.

use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A value where it stands in a body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Value<'a>(&'a RawValue);

impl<'a> Value<'a> {
    /// The body as a value; none when it is no JSON.
    pub(super) fn of(body: &'a [u8]) -> Option<Value<'a>> {
        serde_json::from_slice(body).ok().map(Value)
    }

    /// The members of that name; none when this is no object. More than one when a name stands twice, of which dockerd
    /// takes now the last, now both.
    pub(super) fn members(self, name: &str) -> Vec<Value<'a>> {
        let members: Members<'a> = serde_json::from_str(self.0.get()).unwrap_or_default();
        members
            .0
            .into_iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| Value(value))
            .collect()
    }

    /// The elements; none when this is no array.
    pub(super) fn elements(self) -> Vec<Value<'a>> {
        let elements: Vec<&RawValue> = serde_json::from_str(self.0.get()).unwrap_or_default();
        elements.into_iter().map(Value).collect()
    }

    /// The text; none when this is no string.
    pub(super) fn text(self) -> Option<String> {
        serde_json::from_str(self.0.get()).ok()
    }

    /// Whether a member of that name is a string for which `holds`.
    pub(super) fn has(self, name: &str, holds: impl Fn(&str) -> bool) -> bool {
        let texts = self.members(name).into_iter().filter_map(Value::text);
        texts.into_iter().any(|text| holds(&text))
    }
}

/// The members of an object, in order.
#[derive(Default)]
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// Strings to be put in the place of values.
#[derive(Debug, Default)]
pub(super) struct Edits(Vec<(Range<usize>, String)>);

impl Edits {
    /// Nothing is to change.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts the string `text` in the place of `value`, which stands in `body`.
    pub(super) fn replace(&mut self, body: &[u8], value: Value<'_>, text: &str) {
        let value = value.0.get();
        let start = value.as_ptr() as usize - body.as_ptr() as usize;
        self.0.push((
            start..start + value.len(),
            serde_json::Value::from(text).to_string(),
        ));
    }

    /// `body` with everything replaced.
    pub(super) fn apply(mut self, body: &[u8]) -> Vec<u8> {
        self.0.sort_by_key(|(place, _)| place.start);
        let mut changed = Vec::with_capacity(body.len() + 64);
        let mut done = 0;
        for (place, text) in self.0 {
            changed.extend_from_slice(&body[done..place.start]);
            changed.extend_from_slice(text.as_bytes());
            done = place.end;
        }
        changed.extend_from_slice(&body[done..]);
        changed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn everything_but_the_replaced_strings_stays_as_it_is() {
        let body = b" {\"big\": 12345678901234567890123, \"f\":1.0e+2, \"A\" : [\"x\", \"\\u00e9\" ,\"x\"],\n\"a\":[\"y\"], \"z\":{\"a\":[\"x\"]}}\n";
        let mut edits = Edits::default();
        for value in Value::of(body).unwrap().members("a") {
            for element in value.elements() {
                match element.text().as_deref() {
                    Some("x") => edits.replace(body, element, "ä \"b\"\\"),
                    Some("y") => edits.replace(body, element, ""),
                    _ => {}
                }
            }
        }
        assert_eq!(
            String::from_utf8(edits.apply(body)).unwrap(),
            " {\"big\": 12345678901234567890123, \"f\":1.0e+2, \"A\" : [\"ä \\\"b\\\"\\\\\", \"\\u00e9\" ,\"ä \\\"b\\\"\\\\\"],\n\"a\":[\"\"], \"z\":{\"a\":[\"x\"]}}\n"
        );
    }

    #[test]
    fn what_is_not_of_the_form_has_nothing_in_it() {
        for body in ["", "{", "[1]", "null", "{\"a\":1}x", "\u{feff}{}"] {
            let members = Value::of(body.as_bytes()).map(|value| value.members("a").len());
            assert!(matches!(members, None | Some(0)), "{body}");
        }
        let value = Value::of(b"{\"a\":\"b\"}").unwrap();
        assert!(value.elements().is_empty() && value.text().is_none());
        assert!(value.has("A", |text| text == "b") && !value.has("b", |_| true));
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at_without_a_panic(body in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some(value) = Value::of(&body) {
                let _ = (value.members("a"), value.elements(), value.text());
            }
        }

        #[test]
        fn a_replaced_text_is_read_back(before in ".*", after in ".*", rest in "[0-9]{1,30}") {
            let body = format!("{{\"s\":{},\"n\":1{rest}}}", serde_json::Value::from(before));
            let value = Value::of(body.as_bytes()).unwrap().members("s")[0];
            let mut edits = Edits::default();
            edits.replace(body.as_bytes(), value, &after);
            let changed = edits.apply(body.as_bytes());
            prop_assert_eq!(Value::of(&changed).unwrap().members("s")[0].text().unwrap(), after);
            let end = format!(",\"n\":1{rest}}}");
            prop_assert!(changed.ends_with(end.as_bytes()));
        }
    }
}
