//! The actions under way, by their numbers: what the server answers the agent by.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use super::super::node::Node;
use super::action::{Action, Numbered};

/// An action that the agent may perform now.
#[derive(Debug)]
pub(in super::super) struct Armed {
    pub(in super::super) action: Action,
    /// How often its attributes were asked for.
    asked: AtomicU32,
    /// Of a rename: what the guest knew by the new name when it began.
    victim: OnceLock<Option<Arc<Node>>>,
}

impl Armed {
    /// What a rename replaces in the guest; `find` looks for it the first time.
    pub(in super::super) fn victim(&self, find: impl FnOnce() -> Option<Arc<Node>>) -> Option<Arc<Node>> {
        self.victim.get_or_init(find).clone()
    }

    /// Whether this is the first question for attributes.
    pub(in super::super) fn is_first_question(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed) == 0
    }
}

/// Those of the batch under way.
#[derive(Debug, Default)]
pub(super) struct Board(RwLock<HashMap<u32, Arc<Armed>>>);

impl Board {
    /// Permits the actions of a batch, and no others.
    pub(super) fn arm(&self, batch: &[Numbered]) {
        let mut board = self.0.write().unwrap_or_else(PoisonError::into_inner);
        board.clear();
        board.extend(batch.iter().map(|Numbered { number, action }| {
            let armed = Armed {
                action: action.clone(),
                asked: AtomicU32::new(0),
                victim: OnceLock::new(),
            };
            (*number, Arc::new(armed))
        }));
    }

    /// The action of a number.
    pub(super) fn get(&self, number: u32) -> Option<Arc<Armed>> {
        let board = self.0.read().unwrap_or_else(PoisonError::into_inner);
        board.get(&number).cloned()
    }
}
