//! Where in the text of a configuration a setting stands: to say it, and to change it without touching the rest.
//!
//! This knows lines, indentation and `key:`, as people write configurations. What is written otherwise (in braces, say) has
//! no place here; whoever changes text by it reads the result again and compares.

/// A line that begins with a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The index of the line, from 0.
    pub line: usize,
    /// How many spaces stand before the key.
    pub indent: usize,
    /// The keys that lead there, with dots between them.
    pub path: String,
    /// The line after the last one that belongs to it; comments and empty lines before what follows do not.
    pub end: usize,
}

/// The places in a text.
#[derive(Debug, Clone, Default)]
pub struct Places(Vec<Place>);

impl Places {
    /// Those in `text`.
    pub fn of(text: &str) -> Places {
        let mut places: Vec<Place> = Vec::new();
        // The places that the current line may be in, outermost first.
        let mut open: Vec<usize> = Vec::new();
        for (line, content) in text.lines().enumerate() {
            let trimmed = content.trim_start_matches(' ');
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            let indent = content.len() - trimmed.len();
            // An item of a list stands as far left as the key that it belongs to, or further right.
            let is_item = trimmed == "-" || trimmed.starts_with("- ");
            open.retain(|index| {
                let above = places[*index].indent;
                above < indent || (is_item && above == indent)
            });
            for index in &open {
                places[*index].end = line + 1;
            }
            if let Some(key) = key(trimmed).filter(|_| !is_item) {
                let path = match open.last() {
                    Some(index) => format!("{}.{key}", places[*index].path),
                    None => key.to_owned(),
                };
                open.push(places.len());
                places.push(Place {
                    line,
                    indent,
                    path,
                    end: line + 1,
                });
            }
        }
        Places(places)
    }

    /// Where the setting with these keys stands first.
    pub fn find(&self, path: &str) -> Option<&Place> {
        self.0.iter().find(|place| place.path == path)
    }

    /// The first that stands in the setting with these keys.
    pub fn find_first_within(&self, path: &str) -> Option<&Place> {
        let within = |place: &&Place| {
            place
                .path
                .strip_prefix(path)
                .is_some_and(|rest| rest.starts_with('.'))
        };
        self.0.iter().find(within)
    }

    /// The number, from 1, of the line in which this setting stands.
    pub fn line(&self, path: &str) -> Option<usize> {
        self.find(path).map(|place| place.line + 1)
    }
}

/// The key that a line begins with.
fn key(line: &str) -> Option<&str> {
    let (key, rest) = match line.chars().next()? {
        quote @ ('\'' | '"') => {
            let (key, rest) = line[1..].split_once(quote)?;
            (key, rest.strip_prefix(':')?)
        }
        _ => line.split_once(':')?,
    };
    (rest.is_empty() || rest.starts_with(' ')).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# mine
cpus: 2 # two
profiles:
  # the first
  a:
    cpus: 1
    shares:
    - path: /x
      target: /y

  'b':
    memory: 1GiB
    # done

docker:
  context: x
";

    #[test]
    fn settings_are_found_where_they_stand() {
        let places = Places::of(TEXT);
        assert_eq!(places.line("cpus"), Some(2));
        assert_eq!(places.line("profiles.a.cpus"), Some(6));
        assert_eq!(places.line("profiles.b.memory"), Some(12));
        assert_eq!(places.line("docker.context"), Some(16));
        assert_eq!(places.line("memory"), None);
    }

    #[test]
    fn what_belongs_to_a_setting_ends_before_the_next_and_its_comments() {
        let places = Places::of(TEXT);
        let extent = |path| {
            let place = places.find(path).unwrap();
            (place.line, place.end)
        };
        assert_eq!(extent("profiles"), (2, 12));
        assert_eq!(extent("profiles.a"), (4, 9));
        assert_eq!(extent("profiles.a.shares"), (6, 9));
        assert_eq!(extent("profiles.b"), (10, 12));
    }
}
