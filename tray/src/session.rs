//! The icon's life on the session's D-Bus: one connection for it, one for what the user is told, and new ones when the bus
//! was restarted.

use std::path::PathBuf;
use std::time::Duration;

use ksni::{Handle, TrayMethods};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use zbus::Connection;
use zbus::fdo::{RequestNameFlags, RequestNameReply};

use crate::desktop::{notify, panels};
use crate::directories::Directories;
use crate::item::{FromPanel, Item, View};
use crate::model::Notice;

/// Who has this name shows the icon of this user's session.
const NAME: &str = "org.berth.Tray";
/// How long a panel may be away, or still to come, before the user is told that there is none.
const PANEL_PATIENCE: Duration = Duration::from_secs(15);
/// A session whose bus is gone for so long is over.
const BUS_PATIENCE: Duration = Duration::from_secs(120);
/// How long to wait at most before the bus is tried again, for one that is not seen to come.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long a call to the bus or the panel may take.
const CALL_TIME: Duration = Duration::from_secs(10);

/// Why there is no icon.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// There is no bus at all.
    #[error(
        "there is no D-Bus session: {0}. Start the icon from a desktop session; where that has no session bus, install the \
         package dbus-user-session and log in again"
    )]
    NoBus(zbus::Error),
    /// The bus is gone and did not come back.
    #[error("the D-Bus session has ended")]
    Ended,
    /// Somebody else shows it.
    #[error("the status icon is there already")]
    Already,
    /// The bus refuses.
    #[error("the D-Bus session refuses the status icon: {0}")]
    Refused(String),
}

/// The ends of the session that the rest of the program has.
pub(crate) struct Ends {
    /// What is to be shown.
    pub(crate) view: watch::Receiver<View>,
    /// What is to be told.
    pub(crate) notices: mpsc::UnboundedReceiver<Notice>,
    /// What comes from the panel.
    pub(crate) panel: mpsc::UnboundedSender<FromPanel>,
}

/// Shows the icon until the session is over.
pub(crate) async fn show(mut ends: Ends) -> Result<(), SessionError> {
    let mut connection = connect().await.map_err(SessionError::NoBus)?;
    let mut panel_missed = false;
    loop {
        own_name(&connection).await?;
        let (tell, mut panel) = mpsc::unbounded_channel();
        let item = Item::new(ends.view.borrow_and_update().clone(), tell);
        match item.assume_sni_available(true).spawn().await {
            Ok(icon) => {
                serve(&connection, &icon, &mut ends, &mut panel, &mut panel_missed).await?;
                // The bus is gone, and what is left of the icon with it.
                drop(tokio::time::timeout(CALL_TIME, icon.shutdown()).await);
            }
            Err(ksni::Error::Dbus(error)) if !connection.is_closed() => {
                return Err(SessionError::Refused(error.to_string()));
            }
            Err(error) => {
                // A panel that refuses, or the bus went away just now. The next panel may be another.
                tracing::warn!("the panel does not take the status icon: {error}");
                next_panel(&connection).await;
                if !connection.is_closed() {
                    continue;
                }
            }
        }
        tracing::info!("the D-Bus session is gone; waiting for it to come back");
        connection = reconnect().await?;
        tracing::info!("the D-Bus session is back");
    }
}

/// Shows what there is to show until the bus is gone.
async fn serve(
    connection: &Connection,
    icon: &Handle<Item>,
    ends: &mut Ends,
    panel: &mut mpsc::UnboundedReceiver<FromPanel>,
    missed: &mut bool,
) -> Result<(), SessionError> {
    let mut patience: Option<Instant> = None;
    loop {
        tokio::select! {
            () = connection.closed() => return Ok(()),
            changed = ends.view.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let view = ends.view.borrow_and_update().clone();
                let update = icon.update(|item| item.view = view);
                if tokio::time::timeout(CALL_TIME, update).await.is_err() {
                    tracing::warn!("the status icon could not be changed");
                }
            }
            Some(notice) = ends.notices.recv() => {
                // A desktop that takes its time to show a message does not hold up the icon.
                tokio::spawn(notify::tell(connection.clone(), notice));
            }
            Some(what) = panel.recv() => match what {
                FromPanel::PanelGone => patience = Some(Instant::now() + PANEL_PATIENCE),
                FromPanel::PanelThere => patience = None,
                other => drop(ends.panel.send(other)),
            },
            () = until(patience), if patience.is_some() => {
                patience = None;
                let notice = panels::nobody_shows_icons();
                tracing::warn!("{}: {}", notice.summary, notice.body);
                if !std::mem::replace(missed, true) {
                    tokio::spawn(notify::tell(connection.clone(), notice));
                }
            }
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn connect() -> zbus::Result<Connection> {
    zbus::connection::Builder::session()?
        .method_timeout(CALL_TIME)
        .build()
        .await
}

async fn own_name(connection: &Connection) -> Result<(), SessionError> {
    // What zbus wants first, for a name that others can call. Nobody calls this one.
    connection.object_server();
    let asked = connection
        .request_name_with_flags(NAME, RequestNameFlags::DoNotQueue.into())
        .await;
    match asked {
        Ok(RequestNameReply::PrimaryOwner | RequestNameReply::AlreadyOwner) => Ok(()),
        Ok(RequestNameReply::Exists | RequestNameReply::InQueue) | Err(zbus::Error::NameTaken) => {
            Err(SessionError::Already)
        }
        Err(error) => Err(SessionError::Refused(error.to_string())),
    }
}

/// Waits for another panel, or for the end of the bus.
async fn next_panel(connection: &Connection) {
    use futures_util::StreamExt;
    let Ok(bus) = zbus::fdo::DBusProxy::new(connection).await else {
        return;
    };
    let watched = [(0, "org.kde.StatusNotifierWatcher")];
    let Ok(mut owners) = bus.receive_name_owner_changed_with_args(&watched).await else {
        return;
    };
    tokio::select! {
        _ = owners.next() => {}
        () = connection.closed() => {}
    }
}

/// A connection to the bus that comes after one that has gone.
async fn reconnect() -> Result<Connection, SessionError> {
    let deadline = Instant::now() + BUS_PATIENCE;
    let mut directories = Directories::new().ok();
    let dir = bus_directory();
    let mut pause = Duration::from_millis(50);
    loop {
        let watched = match (&mut directories, &dir) {
            (Some(directories), Some(dir)) => directories.watch(std::slice::from_ref(dir)).is_ok(),
            _ => false,
        };
        if let Ok(connection) = connect().await {
            return Ok(connection);
        }
        let now = Instant::now();
        if now >= deadline {
            return Err(SessionError::Ended);
        }
        let came = async {
            match &directories {
                Some(directories) if watched => drop(directories.changed().await),
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            // Its socket is there a moment before it listens.
            () = came => pause = Duration::from_millis(50),
            () = tokio::time::sleep(pause.min(deadline - now)) => pause = (pause * 2).min(LONGEST_PAUSE),
        }
    }
}

/// The directory that the bus's socket is in, where it is in one.
fn bus_directory() -> Option<PathBuf> {
    let address = std::env::var("DBUS_SESSION_BUS_ADDRESS").ok();
    let socket = match address.filter(|address| !address.is_empty()) {
        Some(address) => socket_of(&address)?,
        None => PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR")?).join("bus"),
    };
    socket.parent().map(PathBuf::from)
}

/// The path in a D-Bus address.
fn socket_of(address: &str) -> Option<PathBuf> {
    address
        .split(';')
        .filter_map(|one| one.strip_prefix("unix:"))
        .flat_map(|one| one.split(','))
        .find_map(|part| part.strip_prefix("path="))
        .map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_found_in_an_address() {
        let path = |address| socket_of(address).map(|path| path.display().to_string());
        assert_eq!(
            path("unix:path=/run/user/1000/bus").as_deref(),
            Some("/run/user/1000/bus")
        );
        assert_eq!(
            path("tcp:host=h;unix:guid=1,path=/tmp/b").as_deref(),
            Some("/tmp/b")
        );
        assert_eq!(path("unix:abstract=/tmp/dbus-x"), None);
    }
}
