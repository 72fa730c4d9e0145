# A day's work with git, once on the container's own file system and once in the directory that is the argument: what
# comes out, commits and trees by their hashes, has to be the same.
work() {
    export GIT_COMMITTER_DATE="$GIT_AUTHOR_DATE"
    clean() { test -z "$(git status --porcelain --untracked-files=all)" || { git status >&2; exit 1; }; }
    mkdir -p "$1"; cd "$1"
    git init -q -b main repo; cd repo
    mkdir -p a/b c
    for i in $(seq 150); do echo "line $i" >a/b/file-$i; done
    head -c 2000000 /usr/lib/git-core/git >c/big
    printf '#!/bin/sh\necho run\n' >run.sh; chmod 755 run.sh; ln -s run.sh link
    git add -A; test -n "$(git status --porcelain)"; git commit -qm one; clean
    git checkout -qb side
    for i in $(seq 20); do echo changed >>a/b/file-$i; done
    git rm -q a/b/file-30; git mv a/b/file-31 moved; chmod 644 run.sh
    git commit -qam two; clean
    git checkout -q main; clean
    test -x run.sh; test -e a/b/file-30; test ! -e moved
    echo main >>c/small; git add c; git commit -qm three
    git merge -q -m merged side; clean
    test ! -x run.sh; test -e moved
    echo untidy >>moved; git stash -q; clean; git stash pop -q; git checkout -q moved; clean
    git clone -q . ../clone; git -C ../clone fsck --strict --no-progress
    git clone -q "file://$PWD" ../fetched; git -C ../fetched fsck --strict --no-progress
    (cd ../clone; git checkout -q side; echo pushed >pushed; git add pushed; git commit -qm four; git push -q origin side)
    git worktree add -q ../tree side; test "$(cat ../tree/pushed)" = pushed
    git gc -q --prune=now; git fsck --strict --no-progress; git count-objects; clean
    find .git -name '*.lock' -o -name 'tmp_*' >/tmp/left; test ! -s /tmp/left
    git rev-parse HEAD 'HEAD^{tree}' side; git log --format=%s side; git ls-files | wc -l
}

set -e
(work /tmp/own) >/tmp/own.out
(work "$1") >/tmp/shared.out
diff /tmp/own.out /tmp/shared.out
