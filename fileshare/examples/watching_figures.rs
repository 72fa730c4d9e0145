//! What watching costs: memory for each directory the guest knows, processor time when nothing changes, and for each change,
//! without a guest.
//!
//! `cargo run --release -p fileshare --example watching_figures -- [DIRECTORY] [FILES]`: makes a tree of so many files
//! (200 000), ten in each directory, in a temporary directory there (default: the system's), looks all of it up, once unwatched
//! and once watched, prints one JSON object, and removes it.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use fileshare::filesystem::{Context, FileSystem};
use fileshare::passthrough::coherence::{Agent, Coherence, Numbered};
use fileshare::passthrough::{CachePolicy, Passthrough, PassthroughConfig, ShareConfig};
use fileshare::wire::ROOT_ID;

const CTX: Context = Context {
    uid: 0,
    gid: 0,
    pid: 1,
};
const AGENT: u32 = 0xffb3_27e1;
const FILES_PER_DIR: usize = 10;
/// The first argument of the process that watches nothing.
const UNWATCHED: &str = "--unwatched";
/// How long nothing changes.
const IDLE: Duration = Duration::from_secs(20);

/// Has done everything at once.
struct Done;

impl Agent for Done {
    fn perform(&mut self, batch: &[Numbered]) -> std::io::Result<Vec<i32>> {
        Ok(vec![0; batch.len()])
    }
}

fn main() {
    let mut args = std::env::args().skip(1).peekable();
    if args.next_if(|arg| arg == UNWATCHED).is_some() {
        let tree = args.next().expect("a tree");
        let (bytes, time) = look_everything_up(&share(Path::new(&tree)), count(args.next()));
        println!("{bytes} {}", time.as_nanos());
        return;
    }
    let base = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let files = args.next().map_or(200_000, |number| count(Some(number)));
    let dirs = files.div_ceil(FILES_PER_DIR);
    let tree = tempfile::tempdir_in(base).expect("a temporary directory");
    for dir in 0..dirs {
        let dir = tree.path().join(dir.to_string());
        std::fs::create_dir(&dir).expect("mkdir");
        for file in 0..FILES_PER_DIR {
            std::fs::File::create(dir.join(file.to_string())).expect("create");
        }
    }

    // In a process of its own, for memory that was freed would be used again.
    let unwatched = Command::new(std::env::current_exe().expect("this program"))
        .arg(UNWATCHED)
        .arg(tree.path())
        .arg(dirs.to_string())
        .output()
        .expect("this program once more");
    let unwatched = String::from_utf8(unwatched.stdout).expect("numbers");
    let mut unwatched = unwatched
        .split_whitespace()
        .map(|number| count(Some(number.to_owned())));
    let (plain_bytes, plain_ns) = (
        unwatched.next().expect("bytes"),
        unwatched.next().expect("a time"),
    );

    let fs = share(tree.path());
    let coherence = Coherence::start(&fs, AGENT).expect("watching");
    coherence.connect(Box::new(Done));
    let (bytes, time) = look_everything_up(&fs, dirs);
    let figures = coherence.figures();

    // Queued while nothing else happens, so that all of it is this process's.
    barrier(&coherence);
    let before = processor_time();
    std::thread::sleep(IDLE);
    let idle = processor_time() - before;

    let (before, start) = (processor_time(), Instant::now());
    let touched = Command::new("find")
        .args([".", "-type", "f", "-name", "0", "-exec", "touch", "{}", "+"])
        .current_dir(tree.path())
        .status();
    assert!(touched.expect("find").success());
    barrier(&coherence);
    let (changes, wall) = (processor_time() - before, start.elapsed());
    let told = coherence.figures();

    println!(
        "{{\"directories\":{},\"by_inotify\":{},\"unwatched\":{},\"files\":{files},\"bytes_per_directory\":{:.0},\
         \"lookup_ns\":{:.0},\"lookup_ns_unwatched\":{:.0},\"idle_cpu_ms\":{},\"idle_s\":{},\"changes\":{},\"overflows\":{},\
         \"cpu_us_per_change\":{:.1},\"changes_per_s\":{:.0}}}",
        figures.watched,
        figures.by_inotify,
        figures.unwatched,
        bytes.saturating_sub(plain_bytes) as f64 / figures.watched.max(1) as f64,
        time.as_nanos() as f64 / (files + dirs) as f64,
        plain_ns as f64 / (files + dirs) as f64,
        idle.as_millis(),
        IDLE.as_secs(),
        told.seen,
        told.overflows,
        changes.as_micros() as f64 / told.seen.max(1) as f64,
        told.seen as f64 / wall.as_secs_f64(),
    );
}

fn share(root: &Path) -> Arc<Passthrough> {
    let config = PassthroughConfig {
        descriptors: Some(20_000),
        ..PassthroughConfig::with_cache(CachePolicy::Auto)
    };
    Arc::new(Passthrough::single(ShareConfig::new(root), config).expect("share"))
}

/// Returns the memory that it took, and the time.
fn look_everything_up(fs: &Passthrough, dirs: usize) -> (usize, Duration) {
    let (before, start) = (resident(), Instant::now());
    for dir in 0..dirs {
        let dir = fs.lookup(&CTX, ROOT_ID, &name(dir)).expect("lookup").node;
        for file in 0..FILES_PER_DIR {
            fs.lookup(&CTX, dir, &name(file)).expect("lookup");
        }
    }
    (resident().saturating_sub(before), start.elapsed())
}

fn count(number: Option<String>) -> usize {
    number.and_then(|number| number.parse().ok()).expect("a number")
}

fn name(number: usize) -> CString {
    CString::new(number.to_string()).expect("a name")
}

fn barrier(coherence: &Coherence) {
    let (sender, reached) = channel();
    coherence.barrier(Box::new(move |result| {
        // Nobody has given up: it is waited for just below.
        let _ = sender.send(result);
    }));
    reached.recv().expect("an answer").expect("the barrier");
}

/// Bytes of memory this process uses.
fn resident() -> usize {
    field("/proc/self/statm", 1) * 4096
}

/// User's and system's, of all threads (`proc_pid_stat(5)`; a tick is 10 ms).
fn processor_time() -> Duration {
    let ticks = field("/proc/self/stat", 13) + field("/proc/self/stat", 14);
    Duration::from_millis(10 * ticks as u64)
}

fn field(file: &str, number: usize) -> usize {
    let text = std::fs::read_to_string(file).expect("/proc");
    text.split_whitespace()
        .nth(number)
        .and_then(|field| field.parse().ok())
        .expect("a number")
}
