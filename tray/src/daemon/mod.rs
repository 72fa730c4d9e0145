//! What the icon knows of daemons: their HTTP interface (`docs/api.md`) and nothing else of berth.

pub(crate) mod client;
pub(crate) mod follow;
pub(crate) mod types;
