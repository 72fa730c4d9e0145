//! Which process a machine's daemon is, for the case that it does not answer any more.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::machine::record::write_whole;
use crate::process::ProcessId;

/// The name all of a daemon's processes run under.
const PROGRAM: &str = "berth";

#[derive(Debug, Serialize, Deserialize)]
struct PidFile {
    #[serde(flatten)]
    process: ProcessId,
    /// The daemon's program, as it calls itself.
    program: String,
}

/// Records the calling process as the daemon.
pub fn write(path: &Path) -> io::Result<()> {
    let program = std::env::current_exe()?
        .file_name()
        .map_or_else(|| PROGRAM.into(), |name| name.to_string_lossy().into_owned());
    let file = PidFile {
        process: ProcessId::current()?,
        program,
    };
    write_whole(path, &file)
}

/// The daemon that wrote `path`, if it is still there.
pub fn read(path: &Path) -> Option<ProcessId> {
    let file: PidFile = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (file.process.is_alive() && file.process.runs(&file.program)).then_some(file.process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_process_that_wrote_it_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.json");
        assert_eq!(read(&path), None);
        write(&path).unwrap();
        let me = ProcessId::current().unwrap();
        assert_eq!(read(&path), Some(me));

        let text = fs::read_to_string(&path).unwrap();
        let other_start = text.replace(&me.start_time.to_string(), &(me.start_time + 1).to_string());
        fs::write(&path, other_start).unwrap();
        assert_eq!(read(&path), None, "the id was used again");
        let program = std::env::current_exe().unwrap();
        let program = program.file_name().unwrap().to_string_lossy();
        fs::write(&path, text.replace(&*program, "vim")).unwrap();
        assert_eq!(read(&path), None, "it runs something else");
        fs::write(&path, "").unwrap();
        assert_eq!(read(&path), None);
    }
}
