//! Events in a form in which two tellings of the same can be compared.

use std::fmt;

use crate::watcher::Event;

/// The order in which a telling has what happened to one name at once.
const ORDER: &str = "ncewd";

/// One or several events in a row.
struct Entry {
    path: String,
    letters: String,
    /// Which move of the telling it is half of.
    cookie: Option<usize>,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.letters, self.path)?;
        match self.cookie {
            Some(cookie) => write!(f, " (move {cookie})"),
            None => Ok(()),
        }
    }
}

/// The events as both sides must have them.
///
/// Names are in the order in which something first happened to each. What happened to one of them while it was the same file is
/// one entry, since changes that come together are told together: whether it was made (`n`), modified (`c`), had its
/// attributes changed (`e`), was closed (`w`), deleted (`d`), however often. Moves (`m` to `y`, and `M` of a watched directory)
/// are entries of their own, and the halves of one have its number. The end of a watched directory (`D`) is told when nobody has
/// it open any more, whenever that is: these are last.
pub(super) fn normal(events: &[Event]) -> Vec<String> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut ends = Vec::new();
    let mut cookies = Vec::new();
    for Event { letter, cookie, path } in events {
        let path = without_chance(path);
        if *letter == 'D' {
            ends.push(format!("D {path}"));
            continue;
        }
        let same_file = |entry: &&mut Entry| {
            entry.letters.chars().all(|known| ORDER.contains(known))
                && ORDER.contains(*letter)
                && !(*letter == 'n' && entry.letters.contains('d'))
        };
        let last = entries.iter_mut().rev().find(|entry| entry.path == path);
        if let Some(entry) = last.filter(same_file) {
            entry.letters.push(*letter);
        } else {
            let cookie = (*cookie != 0).then(|| {
                let known = cookies.iter().position(|known| known == cookie);
                known.unwrap_or_else(|| {
                    cookies.push(*cookie);
                    cookies.len() - 1
                })
            });
            entries.push(Entry {
                path,
                letters: letter.to_string(),
                cookie,
            });
        }
    }
    for entry in &mut entries {
        if entry.letters.len() > 1 {
            let letters = &entry.letters;
            entry.letters = ORDER.chars().filter(|letter| letters.contains(*letter)).collect();
        }
    }
    ends.sort();
    let told = entries.iter().map(ToString::to_string);
    told.chain(ends).collect()
}

/// A path without what programs leave to chance in it: the end of the names of sed's and rsync's temporary files, the process id
/// in that of git's temporary index.
fn without_chance(path: &str) -> String {
    let names = path.split('/').map(|name| {
        if let Some(rest) = name.strip_prefix("index.stash.") {
            return format!(
                "index.stash.*{}",
                rest.trim_start_matches(|c: char| c.is_ascii_digit())
            );
        }
        let is_chance = |end: &str| end.len() == 6 && end.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if name.strip_prefix("sed").is_some_and(is_chance) {
            return "sed*".to_owned();
        }
        match name.rsplit_once('.') {
            Some((start, end)) if start.starts_with('.') && is_chance(end) => format!("{start}.*"),
            _ => name.to_owned(),
        }
    });
    names.collect::<Vec<_>>().join("/")
}

/// What has to be done to `expected` to make `found` of it, line by line; nothing when they are equal.
pub(super) fn difference(expected: &[String], found: &[String]) -> String {
    // How long the longest common part of the ends from each pair of places on is.
    let mut common = vec![vec![0_u32; found.len() + 1]; expected.len() + 1];
    for (at, line) in expected.iter().enumerate().rev() {
        for (other_at, other) in found.iter().enumerate().rev() {
            common[at][other_at] = if line == other {
                common[at + 1][other_at + 1] + 1
            } else {
                common[at + 1][other_at].max(common[at][other_at + 1])
            };
        }
    }
    let (mut at, mut other_at) = (0, 0);
    let mut lines = Vec::new();
    while at < expected.len() || other_at < found.len() {
        let (line, other) = (expected.get(at), found.get(other_at));
        if line == other {
            lines.extend(line.map(|line| (' ', line)));
            (at, other_at) = (at + 1, other_at + 1);
        } else if other.is_none() || line.is_some() && common[at + 1][other_at] >= common[at][other_at + 1] {
            lines.extend(line.map(|line| ('-', line)));
            at += 1;
        } else {
            lines.extend(other.map(|line| ('+', line)));
            other_at += 1;
        }
    }
    // With the lines next to what differs.
    let differs = |at: usize| lines.get(at).is_some_and(|(sign, _)| *sign != ' ');
    let shown = |at: usize| differs(at) || differs(at + 1) || at > 0 && differs(at - 1);
    let text = lines.iter().enumerate().filter(|(at, _)| shown(*at));
    text.map(|(_, (sign, line))| format!("  {sign} {line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(lines: &[&str]) -> Vec<String> {
        let events: Vec<Event> = lines.iter().map(|line| Event::parse(line).unwrap()).collect();
        normal(&events)
    }

    #[test]
    fn what_happens_to_a_name_is_one_entry_where_it_first_happened() {
        let apart = told(&["n 0 a", "c 0 a", "n 0 b/", "c 0 a", "w 0 a", "e 0 a", "D 0 b/."]);
        let together = told(&["n 0 a", "D 0 b/.", "c 0 a", "e 0 a", "w 0 a", "n 0 b/"]);

        assert_eq!(apart, ["ncew a", "n b/", "D b/."]);
        assert_eq!(together, apart);
    }

    #[test]
    fn another_file_of_the_same_name_is_another_entry() {
        assert_eq!(told(&["d 0 a", "n 0 a", "c 0 a"]), ["d a", "nc a"]);
        let moved = told(&["n 0 a", "m 7 a", "y 7 b", "n 0 a", "w 0 b"]);
        assert_eq!(moved, ["n a", "m a (move 0)", "y b (move 0)", "n a", "w b"]);
    }

    #[test]
    fn moves_have_their_order_and_their_other_half() {
        let one = told(&["m 7 a", "y 7 b", "m 9 b", "y 9 a"]);
        assert_eq!(
            one,
            ["m a (move 0)", "y b (move 0)", "m b (move 1)", "y a (move 1)"]
        );
        assert_ne!(told(&["m 7 a", "y 8 b"]), told(&["m 7 a", "y 7 b"]));
    }

    #[test]
    fn names_left_to_chance_are_alike() {
        assert_eq!(without_chance("here/sedA1b2C3"), "here/sed*");
        assert_eq!(without_chance("here/sediment/"), "here/sediment/");
        assert_eq!(without_chance("here/.file.a1B2c3"), "here/.file.*");
        assert_eq!(without_chance("here/.file.swp"), "here/.file.swp");
        assert_eq!(without_chance("index.stash.123.lock"), "index.stash.*.lock");
        assert_eq!(without_chance("index.stash.4"), "index.stash.*");
    }

    #[test]
    fn a_difference_is_shown_with_what_is_next_to_it() {
        let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(difference(&lines("a b c"), &lines("a b c")), "");
        assert_eq!(
            difference(&lines("a b c d e f"), &lines("a b x d e g f")),
            "    b\n  - c\n  + x\n    d\n    e\n  + g\n    f\n"
        );
        assert_eq!(difference(&lines("a"), &[]), "  - a\n");
    }
}
