//! The tests, grouped by theme. The docker suite runs on one machine that all its cases share; lifecycle and faults come
//! after it, because they stop and break machines.

/// The list of a theme's cases, each named `theme::function`.
macro_rules! cases {
    ($theme:literal: $($name:ident),* $(,)?) => {
        pub(super) const CASES: &[$crate::suite::Case] = &[$($crate::suite::Case {
            name: concat!($theme, "::", stringify!($name)),
            run: $name,
        }),*];
    };
}

mod api;
mod compose;
mod faults;
mod giving_back;
mod images;
mod lifecycle;
mod names;
mod network;
mod ports;
mod profiles;
mod refusals;
mod run;
mod share_programs;
mod shares;
mod streams;
mod tray;
mod volumes;

use crate::suite::Case;

/// All cases, in the order they run.
pub fn all() -> Vec<Case> {
    [
        images::CASES,
        run::CASES,
        streams::CASES,
        network::CASES,
        ports::CASES,
        names::CASES,
        api::CASES,
        compose::CASES,
        volumes::CASES,
        giving_back::CASES,
        shares::CASES[0],
        shares::CASES[1],
        shares::CASES[2],
        shares::CASES[3],
        shares::CASES[4],
        shares::CASES[5],
        share_programs::CASES,
        lifecycle::CASES,
        profiles::CASES,
        tray::CASES[0],
        tray::CASES[1],
        faults::CASES,
        refusals::CASES,
    ]
    .into_iter()
    .flatten()
    .copied()
    .collect()
}
