//! Messages on the desktop (org.freedesktop.Notifications).

use std::collections::HashMap;

use zbus::Connection;
use zbus::zvariant::Value;

use crate::item::escaped;
use crate::model::Notice;

/// The desktop's service for messages.
#[zbus::proxy(
    interface = "org.freedesktop.Notifications",
    default_service = "org.freedesktop.Notifications",
    default_path = "/org/freedesktop/Notifications",
    gen_blocking = false
)]
trait Notifications {
    #[allow(clippy::too_many_arguments, reason = "the call has so many")]
    fn notify(
        &self,
        app_name: &str,
        replaces_id: u32,
        app_icon: &str,
        summary: &str,
        body: &str,
        actions: &[&str],
        hints: HashMap<&str, Value<'_>>,
        expire_timeout: i32,
    ) -> zbus::Result<u32>;

    fn get_capabilities(&self) -> zbus::Result<Vec<String>>;
}

/// Tells it, on the desktop and in the log, which is all there is on a desktop without such a service.
pub(crate) async fn tell(connection: Connection, notice: Notice) {
    tracing::info!("{}: {}", notice.summary, notice.body);
    if let Err(error) = send(&connection, &notice).await {
        tracing::warn!("the desktop does not show messages: {error}");
    }
}

async fn send(connection: &Connection, notice: &Notice) -> zbus::Result<()> {
    let service = NotificationsProxy::new(connection).await?;
    let capabilities = service.get_capabilities().await?;
    let body = if capabilities.iter().any(|name| name == "body-markup") {
        escaped(&notice.body)
    } else {
        notice.body.clone()
    };
    let urgency: u8 = if notice.urgent { 2 } else { 1 };
    let hints = HashMap::from([("urgency", Value::from(urgency))]);
    service
        .notify("berth", 0, "", &notice.summary, &body, &[], hints, -1)
        .await
        .map(drop)
}
