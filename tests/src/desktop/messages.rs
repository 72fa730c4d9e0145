//! What the user of a desktop session is told: the session's service for messages, which writes them down.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use zbus::blocking::Connection;
use zbus::blocking::connection::Builder;
use zbus::zvariant::OwnedValue;

use super::LIMIT;
use crate::processes::wait_until;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// In a few words.
    pub summary: String,
    /// In full.
    pub body: String,
}

/// All messages since it is there.
pub struct Messages {
    told: Arc<Mutex<Vec<Message>>>,
    _connection: Connection,
}

struct Service(Arc<Mutex<Vec<Message>>>);

#[zbus::interface(name = "org.freedesktop.Notifications")]
impl Service {
    #[allow(clippy::too_many_arguments, reason = "the call has so many")]
    fn notify(
        &self,
        _app_name: String,
        _replaces_id: u32,
        _app_icon: String,
        summary: String,
        body: String,
        _actions: Vec<String>,
        _hints: HashMap<String, OwnedValue>,
        _expire_timeout: i32,
    ) -> u32 {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.push(Message { summary, body });
        u32::try_from(told.len()).unwrap_or(u32::MAX)
    }

    fn get_capabilities(&self) -> Vec<String> {
        vec!["body".into()]
    }
}

impl Messages {
    pub(super) fn take(address: &str) -> Result<Messages> {
        let told = Arc::default();
        let connection = Builder::address(address)?
            .serve_at("/org/freedesktop/Notifications", Service(Arc::clone(&told)))?
            .name("org.freedesktop.Notifications")?
            .build()
            .context("cannot be the session's service for messages")?;
        Ok(Messages {
            told,
            _connection: connection,
        })
    }

    /// All so far.
    pub fn all(&self) -> Vec<Message> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for one whose summary or body has this text.
    ///
    /// # Errors
    /// When there comes none.
    pub fn wait_for(&self, part: &str) -> Result<Message> {
        let find = || {
            self.all()
                .into_iter()
                .find(|message| message.summary.contains(part) || message.body.contains(part))
        };
        wait_until(&format!("a message that says {part:?}"), LIMIT, || {
            Ok(find().is_some())
        })
        .with_context(|| format!("told was {:?}", self.all()))?;
        find().context("the message")
    }
}
