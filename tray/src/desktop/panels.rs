//! What to do where nobody shows status icons.

use crate::model::Notice;

/// Says what is missing on this desktop, and what to install.
pub(crate) fn nobody_shows_icons() -> Notice {
    let desktop = std::env::var("XDG_CURRENT_DESKTOP").unwrap_or_default();
    Notice::answer("This desktop shows no status icons", advice(&desktop))
}

fn advice(desktop: &str) -> &'static str {
    let is = |name: &str| desktop.split(':').any(|part| part.eq_ignore_ascii_case(name));
    if is("GNOME") {
        "berth's icon is there as soon as it does: install the package gnome-shell-extension-appindicator and switch the \
         extension on (`gnome-extensions enable ubuntu-appindicators@ubuntu.com`), then log in again"
    } else if is("XFCE") {
        "berth's icon is there as soon as it does: add the Status Tray Plugin to the panel (right click on the panel, Panel, \
         Add New Items)"
    } else if is("KDE") {
        "berth's icon is there as soon as it does: add the System Tray widget to the panel"
    } else if is("MATE") {
        "berth's icon is there as soon as it does: add the Notification Area to the panel, with the package \
         mate-indicator-applet"
    } else if is("sway") || is("Hyprland") || is("wlroots") {
        "berth's icon is there as soon as it does: install the package waybar and put \"tray\" among its modules"
    } else {
        "berth's icon is there as soon as it does: run a panel that knows StatusNotifierItem, such as that of the package \
         xfce4-panel, or waybar under Wayland"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_desktop_gets_its_own_advice() {
        assert!(advice("ubuntu:GNOME").contains("gnome-shell-extension-appindicator"));
        assert!(advice("XFCE").contains("Status Tray Plugin"));
        assert!(advice("sway").contains("waybar"));
        assert!(advice("").contains("StatusNotifierItem"));
    }
}
