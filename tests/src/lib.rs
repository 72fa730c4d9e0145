//! End-to-end tests: a machine under test, the real `docker` client, and faults nobody wants to meet.
//!
//! The harness is this library: [`machine::Machine`] is a berth of its own in a temporary home, [`program::Program`] runs
//! every command with a limit, [`terminal::Terminal`] is a person at a terminal. The [`cases`] are grouped by theme; the
//! `e2e` program runs them, `bench` measures.

pub mod api;
pub mod base_image;
pub mod bench;
pub mod carried;
pub mod cases;
pub mod desktop;
pub mod docker;
pub mod host_services;
pub mod machine;
pub mod name_server;
pub mod namespace;
pub mod openapi;
pub mod options;
pub mod own_host;
pub mod processes;
pub mod program;
pub mod programs_image;
pub mod suite;
pub mod terminal;
pub mod tools_image;
pub mod transcript;
pub mod watcher;
