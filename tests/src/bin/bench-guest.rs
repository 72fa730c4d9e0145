//! The init of the machine in which `bench files` measures. Built static, since it is alone there.

fn main() {
    berth_tests::bench::files::guest::run();
}
