//! What is done to files while somebody watches.

/// Something done by a shell.
pub(super) struct Step {
    pub(super) what: &'static str,
    /// What is watched from here on.
    pub(super) watch: &'static [&'static str],
    /// What the shell does, in the directory that has all this.
    pub(super) script: &'static str,
}

const fn step(what: &'static str, watch: &'static [&'static str], script: &'static str) -> Step {
    Step { what, watch, script }
}

/// The start of a script's line with vim, which has no terminal, no settings of the user's and no memory.
macro_rules! vim {
    () => {
        "$(command -v vim || command -v vim.tiny) -es -N -u NONE -i NONE -c 'set backupskip=' "
    };
}

/// What is there before. Nobody looks into `aside`.
pub(super) const BEFORE: &str = "mkdir here aside aside/dir; echo in > aside/in; echo in > aside/dir/file; mkdir -p pkg/sub; \
    echo a > pkg/a; echo b > pkg/b; echo c > pkg/sub/c; ln -s a pkg/link; tar cf pkg.tar pkg; rm -r pkg";

/// What people and their programs do to files.
pub(super) const PROGRAMS: [Step; 44] = [
    step("a new file", &["here"], "echo one > here/f"),
    step("writing it anew", &[], "echo two > here/f"),
    step("appending", &[], "echo three >> here/f"),
    step("touch of a new file", &[], "touch here/t"),
    step("touch of an old one", &[], "touch here/t"),
    step("touch with another's times", &[], "touch -r here/f here/t"),
    step("chmod", &[], "chmod 600 here/t"),
    step("chmod of the watched directory", &[], "chmod 700 here"),
    step("cp", &[], "cp here/f here/copy"),
    step("cp with times and mode", &[], "cp -p here/f here/kept"),
    step("mv", &[], "mv here/copy here/moved"),
    step("mv over another", &[], "mv here/moved here/kept"),
    step("mkdir -p", &[], "mkdir -p here/tree/sub/deep"),
    step(
        "chmod of a directory that is watched, in one that is",
        &["here/tree", "here/tree/sub"],
        "chmod 700 here/tree",
    ),
    step(
        "in several directories",
        &[],
        "echo x > here/tree/file; echo y > here/tree/sub/file; mkdir here/tree/sub/more",
    ),
    step(
        "mv to another directory",
        &[],
        "mv here/tree/file here/tree/sub/other",
    ),
    step("mv of a directory", &[], "mv here/tree/sub here/away"),
    step("in it at its new place", &[], "echo more >> here/away/other"),
    step("mv of it back", &[], "mv here/away here/tree/sub"),
    step("mv from where nobody looks", &[], "mv aside/in here/in"),
    step("mv to where nobody looks", &[], "mv here/in aside/out"),
    step("mv of a directory from there", &[], "mv aside/dir here/dir"),
    step(
        "in that directory",
        &["here/dir"],
        "echo more >> here/dir/file; echo new > here/dir/new",
    ),
    step("mv of it back there", &[], "mv here/dir aside/dir"),
    step("sed -i", &[], "sed -i s/two/2/ here/f"),
    step("truncate to more", &[], "truncate -s 10000 here/f"),
    step("truncate to nothing", &[], "truncate -s 0 here/f"),
    step("truncate of a new file", &[], "truncate -s 100 here/s"),
    step(
        "dd",
        &[],
        "dd if=/dev/zero of=here/big bs=64k count=16 2>/dev/null",
    ),
    step(
        "dd into the middle",
        &[],
        "dd if=/dev/zero of=here/big bs=1k seek=3 count=1 conv=notrunc 2>/dev/null",
    ),
    step("ln", &[], "ln here/f here/hard"),
    step("writing through the other name", &[], "echo hard >> here/hard"),
    step("rm of the other name", &[], "rm here/hard"),
    step("ln -s", &[], "ln -s f here/link"),
    step("rm of the link", &[], "rm here/link"),
    step("a FIFO", &[], "mkfifo here/fifo; rm here/fifo"),
    step(
        "saving by a file that takes the place",
        &[],
        "echo new > here/.f.tmp; mv here/.f.tmp here/f",
    ),
    step(
        "saving with a backup",
        &[],
        "mv here/f here/f~; echo newer > here/f; chmod 640 here/f; rm here/f~",
    ),
    step("tar x", &[], "tar xf pkg.tar -C here"),
    step(
        "tar x over what is there",
        &["here/pkg", "here/pkg/sub"],
        "tar xf pkg.tar -C here",
    ),
    step(
        "files and directories that are gone at once",
        &[],
        "i=0; while [ $i -lt 100 ]; do echo $i > here/a$i; mv here/a$i here/b$i; rm here/b$i; mkdir here/d$i; rmdir here/d$i; \
         i=$((i+1)); done",
    ),
    step(
        "many files",
        &[],
        "i=0; while [ $i -lt 300 ]; do echo $i > here/many$i; i=$((i+1)); done",
    ),
    step(
        "rm of them",
        &[],
        "i=0; while [ $i -lt 300 ]; do rm here/many$i; i=$((i+1)); done",
    ),
    step("rm -r of watched trees", &[], "rm -r here/tree here/pkg"),
];

/// Names that come and go while a program asks for them all the time. Each once: what happens to one name again and again may be
/// told as one.
pub(super) const LOOKED_FOR: [Step; 3] = [
    step(
        "files that take the place",
        &["here"],
        "for i in $(seq 40); do echo $i > here/tmp$i; mv here/tmp$i here/f$i; done",
    ),
    step(
        "files that are gone at once",
        &[],
        "for i in $(seq 40); do echo $i > here/gone$i; rm here/gone$i; done",
    ),
    step(
        "directories that are gone at once",
        &[],
        "for i in $(seq 40); do mkdir here/dir$i; rmdir here/dir$i; done",
    ),
];

/// Steps of a program that not every host has.
pub(super) struct Group {
    pub(super) program: &'static str,
    /// What the steps need: one of each of these.
    pub(super) needs: &'static [&'static [&'static str]],
    pub(super) steps: &'static [Step],
}

/// What editors, copies and archives do on hosts that have them.
pub(super) const GROUPS: [Group; 3] = [
    Group {
        program: "vim",
        needs: &[&["vim", "vim.tiny"]],
        steps: &VIM,
    },
    Group {
        program: "rsync",
        needs: &[&["rsync"]],
        steps: &RSYNC,
    },
    Group {
        program: "unzip",
        needs: &[&["unzip"], &["zip"]],
        steps: &UNZIP,
    },
];

/// Saving by vim in each of its ways. It would make no backups of what is below /tmp, where machines under test are.
const VIM: [Step; 7] = [
    step(
        "vim, a new file",
        &["here"],
        concat!(vim!(), "-c 'normal ihello' -c wq here/vim"),
    ),
    step(
        "vim, as it comes",
        &[],
        concat!(vim!(), "-c 'normal Ahello' -c wq here/vim"),
    ),
    step(
        "vim, without a backup",
        &[],
        concat!(
            vim!(),
            "-c 'set nobackup nowritebackup' -c 'normal Anobackup' -c wq here/vim"
        ),
    ),
    step(
        "vim, with a backup by renaming",
        &[],
        concat!(
            vim!(),
            "-c 'set backup backupcopy=no' -c 'normal Arenamed' -c wq here/vim"
        ),
    ),
    step(
        "vim, with a backup by copying",
        &[],
        concat!(
            vim!(),
            "-c 'set backup backupcopy=yes' -c 'normal Acopied' -c wq here/vim"
        ),
    ),
    step(
        "vim, two files and several saves",
        &[],
        concat!(
            vim!(),
            "-c 'normal Aone' -c w -c 'normal Atwo' -c w -c 'next' -c 'normal Athree' -c wq here/vim here/other-vim"
        ),
    ),
    step(
        "vim, without a swap file, of a read-only file",
        &[],
        concat!(
            "chmod 400 here/vim; ",
            vim!(),
            "-n -c 'normal Aforced' -c wq! here/vim"
        ),
    ),
];

/// Copies of one directory, whose own times are left out: whether they differ after a copy is a matter of milliseconds. In one
/// directory at a time: rsync is several processes, and what they do in several has no order.
const RSYNC: [Step; 6] = [
    step(
        "rsync of a new directory",
        &["here"],
        "mkdir aside/from; for i in 1 2 3; do echo $i > aside/from/file$i; done; touch -d @1700000000 aside/from/*; \
         rsync -aO aside/from/ here/to",
    ),
    step(
        "rsync of a changed file",
        &["here/to"],
        "echo changed > aside/from/file2; rsync -aO aside/from/file2 here/to/",
    ),
    step(
        "rsync into the same file",
        &[],
        "echo changed again > aside/from/file2; rsync -aO --inplace aside/from/file2 here/to/",
    ),
    step(
        "rsync with a backup",
        &[],
        "echo and again > aside/from/file2; rsync -aO --backup aside/from/file2 here/to/",
    ),
    step(
        "rsync of times and modes",
        &[],
        "chmod 640 aside/from/file1; touch -d @1600000000 aside/from/file1; rsync -aO aside/from/file1 here/to/",
    ),
    step(
        "rsync that deletes",
        &[],
        "rm aside/from/file3; rsync -aO --delete aside/from/ here/to",
    ),
];

const UNZIP: [Step; 3] = [
    step(
        "unzip",
        &["here"],
        "mkdir aside/zip aside/zip/sub; for i in 1 2 sub/3; do echo $i > aside/zip/$i; done; \
         (cd aside/zip && zip -qr ../archive.zip .); unzip -q aside/archive.zip -d here/unzipped",
    ),
    step(
        "unzip over what is there",
        &["here/unzipped", "here/unzipped/sub"],
        "unzip -qo aside/archive.zip -d here/unzipped",
    ),
    step(
        "unzip of one file that is gone",
        &[],
        "rm here/unzipped/1; unzip -qo aside/archive.zip 1 -d here/unzipped",
    ),
];

/// What git does. Times are such that it need not wonder whether a file has changed since it looked.
pub(super) const GIT: [Step; 10] = [
    step("git init", &["here"], "git init -q -b main here/repo"),
    step(
        "git add",
        &["here/repo", "here/repo/.git", "here/repo/.git/refs/heads"],
        "cd here/repo; git config gc.auto 0; git config maintenance.auto false; mkdir src; i=0; \
         while [ $i -lt 20 ]; do echo $i > src/$i; i=$((i+1)); done; echo top > top; touch -d @1700000000 top src/*; git add .",
    ),
    step(
        "git commit",
        &["here/repo/src"],
        "cd here/repo; git commit -qm one",
    ),
    step(
        "git checkout of a new branch",
        &[],
        "cd here/repo; git checkout -qb other; git rm -q src/3 src/4",
    ),
    step(
        "git commit of it",
        &[],
        "cd here/repo; echo changed > src/5; echo new > src/new; touch -d @1600000000 src/5 src/new; git add .; \
         git commit -qm two",
    ),
    step("git checkout", &[], "cd here/repo; git checkout -q main"),
    step(
        "git checkout of the other",
        &[],
        "cd here/repo; git checkout -q other",
    ),
    step(
        "git stash",
        &[],
        "cd here/repo; echo wip > src/6; touch -d @1500000000 src/6; git stash -q",
    ),
    step("git stash pop", &[], "cd here/repo; git stash pop -q"),
    step("git reset", &[], "cd here/repo; git reset -q --hard main"),
];

/// What every step has in its environment. With fixed dates, the same steps make the same commits anywhere.
pub(super) const ENVIRONMENT: [(&str, &str); 9] = [
    ("LC_ALL", "C"),
    ("GIT_CONFIG_NOSYSTEM", "1"),
    ("GIT_CONFIG_GLOBAL", "/dev/null"),
    ("GIT_AUTHOR_NAME", "Author"),
    ("GIT_AUTHOR_EMAIL", "author@example.org"),
    ("GIT_AUTHOR_DATE", "1700000000 +0100"),
    ("GIT_COMMITTER_NAME", "Committer"),
    ("GIT_COMMITTER_EMAIL", "committer@example.org"),
    ("GIT_COMMITTER_DATE", "1700000000 +0100"),
];

/// What no step has: these would lead git to another repository, such as the one whose hook runs the tests.
pub(super) const NOT_IN_ENVIRONMENT: [&str; 6] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_COMMON_DIR",
    "GIT_PREFIX",
];
