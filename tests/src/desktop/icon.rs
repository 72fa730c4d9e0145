//! A status icon and its menu, over D-Bus, as a panel reads and drives them.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};
use zbus::blocking::connection::Builder;
use zbus::blocking::{Connection, Proxy};
use zbus::zvariant::{OwnedValue, Value};

use super::LIMIT;
use crate::processes::wait_until;

const WATCHER: &str = "org.kde.StatusNotifierWatcher";

/// A status icon.
pub struct Icon {
    connection: Connection,
    name: String,
    menu: String,
}

/// An item of its menu.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MenuItem {
    id: i32,
    /// What it says.
    pub label: String,
    /// Whether it can be clicked.
    pub enabled: bool,
    /// Whether it is there at all.
    pub visible: bool,
    /// Whether it is the one of several that holds.
    pub chosen: bool,
    /// What is below it.
    pub items: Vec<MenuItem>,
}

fn connect(address: &str) -> Result<Connection> {
    let builder = Builder::address(address).context("the bus's address")?;
    builder
        .method_timeout(LIMIT)
        .build()
        .context("cannot connect to the bus")
}

/// The icons that the panel has, each as `NAME/PATH`.
fn registered(connection: &Connection) -> Result<Vec<String>> {
    let watcher = Proxy::new(connection, WATCHER, "/StatusNotifierWatcher", WATCHER)?;
    Ok(watcher.get_property("RegisteredStatusNotifierItems")?)
}

/// Waits until a panel looks after status icons.
pub(super) fn wait_for_panel(address: &str) -> Result<()> {
    let connection = connect(address)?;
    wait_until("the panel to look after status icons", LIMIT, || {
        Ok(registered(&connection).is_ok())
    })
}

impl Icon {
    /// The icon of a process, once the panel has it.
    pub(super) fn find(address: &str, process: u32) -> Result<Icon> {
        let connection = connect(address)?;
        let name = format!("org.kde.StatusNotifierItem-{process}-");
        let mut found = None;
        wait_until("the panel to have the icon", LIMIT, || {
            let all = registered(&connection).unwrap_or_default();
            found = all.into_iter().find(|item| item.starts_with(&name));
            Ok(found.is_some())
        })?;
        let found = found.context("the icon")?;
        let (name, path) = found.split_once('/').context("an icon is a name and a path")?;
        let item = Proxy::new(
            &connection,
            name.to_owned(),
            format!("/{path}"),
            "org.kde.StatusNotifierItem",
        )?;
        let menu: zbus::zvariant::OwnedObjectPath = item.get_property("Menu")?;
        Ok(Icon {
            name: name.to_owned(),
            menu: menu.as_str().to_owned(),
            connection,
        })
    }

    fn item_proxy(&self) -> Result<Proxy<'_>> {
        let (name, path) = (self.name.as_str(), "/StatusNotifierItem");
        Ok(Proxy::new(
            &self.connection,
            name,
            path,
            "org.kde.StatusNotifierItem",
        )?)
    }

    fn menu_proxy(&self) -> Result<Proxy<'_>> {
        let (name, path) = (self.name.as_str(), self.menu.as_str());
        Ok(Proxy::new(
            &self.connection,
            name,
            path,
            "com.canonical.dbusmenu",
        )?)
    }

    /// Its tool tip: headline and text.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn tool_tip(&self) -> Result<(String, String)> {
        type ToolTip = (String, Vec<(i32, i32, Vec<u8>)>, String, String);
        let (_, _, title, text): ToolTip = self.item_proxy()?.get_property("ToolTip")?;
        Ok((title, text))
    }

    /// Its pictures: width, height and pixels of each.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn pictures(&self) -> Result<Vec<(i32, i32, Vec<u8>)>> {
        Ok(self.item_proxy()?.get_property("IconPixmap")?)
    }

    /// The menu, as a panel reads it that is about to show it.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn menu(&self) -> Result<MenuItem> {
        let menu = self.menu_proxy()?;
        let _: bool = menu.call("AboutToShow", &(0_i32,))?;
        let (_, root): (u32, Layout) = menu.call("GetLayout", &(0_i32, -1_i32, Vec::<&str>::new()))?;
        MenuItem::of(root)
    }

    /// Waits until something in the menu is as it should.
    ///
    /// # Errors
    /// When it does not become so.
    pub fn wait_for(&self, what: &str, condition: impl Fn(&MenuItem) -> bool) -> Result<MenuItem> {
        self.wait_long_for(what, LIMIT, condition)
    }

    /// As [`Icon::wait_for`], for what may take longer.
    ///
    /// # Errors
    /// When it does not become so within `limit`.
    pub fn wait_long_for(
        &self,
        what: &str,
        limit: std::time::Duration,
        condition: impl Fn(&MenuItem) -> bool,
    ) -> Result<MenuItem> {
        let mut menu = self.menu()?;
        wait_until(what, limit, || {
            menu = self.menu()?;
            Ok(condition(&menu))
        })
        .with_context(|| format!("the menu is\n{}", menu.text()))?;
        Ok(menu)
    }

    /// Clicks the item that these labels lead to, each the beginning of one.
    ///
    /// # Errors
    /// When there is none that can be clicked.
    pub fn click(&self, labels: &[&str]) -> Result<()> {
        // The menu may change between being read and being clicked, and then has other ids.
        wait_until(&format!("{labels:?} to be clicked"), LIMIT, || {
            let menu = self.menu()?;
            let item = menu.at(labels)?;
            if !item.enabled {
                bail!("{labels:?} cannot be clicked in\n{}", menu.text());
            }
            let event = (item.id, "clicked", Value::from(0_i32), 0_u32);
            let clicked: zbus::Result<()> = self.menu_proxy()?.call("Event", &event);
            match clicked {
                Ok(()) => Ok(true),
                Err(zbus::Error::MethodError(_, Some(why), _)) if why == "id not found" => Ok(false),
                Err(error) => Err(error.into()),
            }
        })
    }
}

type Layout = (i32, HashMap<String, OwnedValue>, Vec<OwnedValue>);

impl MenuItem {
    fn of((id, properties, children): Layout) -> Result<MenuItem> {
        let text = |name: &str| {
            let value = properties
                .get(name)
                .and_then(|value| <&str>::try_from(&**value).ok());
            value.unwrap_or_default().replace("__", "_")
        };
        let flag = |name: &str| properties.get(name).and_then(|value| bool::try_from(value).ok());
        let toggled = properties
            .get("toggle-state")
            .and_then(|value| i32::try_from(value).ok());
        let items = children.into_iter().map(|child| {
            let child = Value::from(child);
            let Value::Structure(_) = child else {
                bail!("an item of a menu is no structure");
            };
            let layout: Layout = child.try_to_owned()?.try_into()?;
            MenuItem::of(layout)
        });
        Ok(MenuItem {
            id,
            label: text("label"),
            enabled: flag("enabled").unwrap_or(true),
            visible: flag("visible").unwrap_or(true),
            chosen: toggled == Some(1),
            items: items.collect::<Result<_>>()?,
        })
    }

    /// The item that labels lead to, each the beginning of one that is visible.
    ///
    /// # Errors
    /// When there is none.
    pub fn at(&self, labels: &[&str]) -> Result<&MenuItem> {
        let mut item = self;
        for label in labels {
            item = item
                .items
                .iter()
                .find(|item| item.visible && item.label.starts_with(label))
                .with_context(|| format!("there is no {labels:?} in\n{}", self.text()))?;
        }
        Ok(item)
    }

    /// Whether there is such an item.
    pub fn has(&self, labels: &[&str]) -> bool {
        self.at(labels).is_ok()
    }

    /// All of it that is visible, as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for item in self.items.iter().filter(|item| item.visible) {
            let mark = match (item.chosen, item.enabled) {
                (true, _) => "* ",
                (false, true) => "",
                (false, false) => "  ",
            };
            text.push_str(&format!("{mark}{}\n", item.label));
            for line in item.text().lines() {
                text.push_str(&format!("    {line}\n"));
            }
        }
        text
    }
}
