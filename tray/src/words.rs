//! How things are said: as the command line says them.

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// An amount of bytes in the largest unit that leaves a number of at least 1: `4 GiB`, `1.5 GiB`, `0 B`.
pub(crate) fn size(bytes: u64) -> String {
    let (unit, name) = match bytes {
        TIB.. => (TIB, "TiB"),
        GIB.. => (GIB, "GiB"),
        MIB.. => (MIB, "MiB"),
        KIB.. => (KIB, "KiB"),
        _ => (1, "B"),
    };
    if bytes.is_multiple_of(unit) {
        format!("{} {name}", bytes / unit)
    } else {
        format!("{:.1} {name}", bytes as f64 / unit as f64)
    }
}

/// A number of seconds: `42 s`, `3 min 5 s`, `2 h 7 min`, `3 d 4 h`.
pub(crate) fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// `1 CPU`, `4 CPUs`.
pub(crate) fn cpus(number: u64) -> String {
    match number {
        1 => "1 CPU".into(),
        _ => format!("{number} CPUs"),
    }
}

/// The parts of a start, in order.
pub(crate) const PHASES: [&str; 7] = [
    "prepare", "network", "engine", "kernel", "guest", "docker", "socket",
];

/// What a part of a start is about. One that this version does not know is called by its name.
pub(crate) fn phase(name: &str) -> &str {
    match name {
        "prepare" => "checking files and choosing an engine",
        "network" => "starting the network",
        "engine" => "starting the virtual machine",
        "kernel" => "booting the guest",
        "guest" => "preparing the guest",
        "docker" => "starting Docker",
        "socket" => "opening the Docker socket",
        other => other,
    }
}

/// A berth command for a machine, as the user would type it.
pub(crate) fn command(machine: &str, command: &str) -> String {
    if machine == crate::DEFAULT_MACHINE {
        format!("berth {command}")
    } else {
        format!("berth {command} -m {machine}")
    }
}

/// Text in lines of at most `width` characters, broken between words: menus do not break them.
pub(crate) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always a line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_are_those_of_the_command_line() {
        assert_eq!(
            [4 * GIB, GIB + GIB / 2, 0, 1023].map(size),
            ["4 GiB", "1.5 GiB", "0 B", "1023 B"]
        );
        assert_eq!(
            [0, 59, 185, 7620, 273_600].map(duration),
            ["0 s", "59 s", "3 min 5 s", "2 h 7 min", "3 d 4 h"]
        );
    }

    #[test]
    fn long_text_is_broken_between_words() {
        assert_eq!(wrapped("aa bb cc", 5), ["aa bb", "cc"]);
        assert_eq!(wrapped("a-very-long-word b", 5), ["a-very-long-word", "b"]);
        assert_eq!(wrapped("", 5), [""]);
    }
}
