//! The status icon as panels see it: a `StatusNotifierItem` with a `dbusmenu`.
//!
//! It shows what it was last given and passes on what is clicked. Nothing here waits for anything, so a panel never does.

use std::sync::Arc;

use ksni::menu::{RadioGroup, RadioItem, StandardItem, SubMenu};
use ksni::{Category, Icon, MenuItem, OfflineReason, ToolTip, Tray};
use tokio::sync::mpsc::UnboundedSender;

use crate::icon::Picture;
use crate::menu::{Action, Entry};

/// What is shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// The icon, in all sizes.
    pub(crate) pictures: Arc<Vec<Picture>>,
    /// The line on top of the tool tip.
    pub(crate) headline: String,
    /// The rest of it.
    pub(crate) details: String,
    /// The menu.
    pub(crate) menu: Vec<Entry>,
}

/// What comes from the panel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FromPanel {
    /// An item was clicked.
    Clicked(Action),
    /// The menu is about to be looked at.
    MenuShown,
    /// There is a panel that shows status icons.
    PanelThere,
    /// There is none.
    PanelGone,
}

/// The icon.
pub(crate) struct Item {
    /// What it shows.
    pub(crate) view: View,
    tell: UnboundedSender<FromPanel>,
}

impl Item {
    /// Shows `view`, and tells what comes from the panel.
    pub(crate) fn new(view: View, tell: UnboundedSender<FromPanel>) -> Item {
        Item { view, tell }
    }

    fn tell(&self, what: FromPanel) {
        // Nobody listens when the icon is about to end.
        let _ = self.tell.send(what);
    }
}

impl Tray for Item {
    // A left click opens the menu: there is no window to show.
    const MENU_ON_ACTIVATE: bool = true;

    fn id(&self) -> String {
        "berth".into()
    }

    fn title(&self) -> String {
        "berth".into()
    }

    fn category(&self) -> Category {
        Category::SystemServices
    }

    fn icon_pixmap(&self) -> Vec<Icon> {
        self.view
            .pictures
            .iter()
            .filter_map(|picture| {
                let size = i32::try_from(picture.size).ok()?;
                Some(Icon {
                    width: size,
                    height: size,
                    data: picture.argb(),
                })
            })
            .collect()
    }

    fn tool_tip(&self) -> ToolTip {
        ToolTip {
            title: escaped(&self.view.headline),
            description: escaped(&self.view.details),
            ..ToolTip::default()
        }
    }

    fn menu(&self) -> Vec<MenuItem<Self>> {
        items(&self.view.menu)
    }

    fn menu_about_to_show(&mut self) {
        self.tell(FromPanel::MenuShown);
    }

    fn watcher_online(&self) {
        self.tell(FromPanel::PanelThere);
    }

    fn watcher_offline(&self, reason: OfflineReason) -> bool {
        tracing::debug!("no panel: {reason:?}");
        self.tell(FromPanel::PanelGone);
        true
    }
}

fn items(entries: &[Entry]) -> Vec<MenuItem<Item>> {
    entries.iter().map(item).collect()
}

fn item(entry: &Entry) -> MenuItem<Item> {
    match entry {
        Entry::Text(text) => StandardItem {
            label: label(text.as_deref().unwrap_or_default()),
            enabled: false,
            visible: text.is_some(),
            ..StandardItem::default()
        }
        .into(),
        Entry::Item { label: text, action } => {
            let clicked = action.clone();
            StandardItem {
                label: label(text),
                enabled: action.is_some(),
                activate: Box::new(move |item: &mut Item| {
                    if let Some(action) = &clicked {
                        item.tell(FromPanel::Clicked(action.clone()));
                    }
                }),
                ..StandardItem::default()
            }
            .into()
        }
        Entry::Menu {
            label: text,
            visible,
            entries,
        } => SubMenu {
            label: label(text),
            visible: *visible,
            submenu: items(entries),
            ..SubMenu::default()
        }
        .into(),
        Entry::Choice { selected, options } => {
            let actions: Vec<_> = options.iter().map(|option| option.action.clone()).collect();
            RadioGroup {
                selected: selected.unwrap_or(usize::MAX),
                select: Box::new(move |item: &mut Item, at| {
                    if let Some(Some(action)) = actions.get(at) {
                        item.tell(FromPanel::Clicked(action.clone()));
                    }
                }),
                options: options
                    .iter()
                    .map(|option| RadioItem {
                        label: label(&option.label),
                        enabled: option.action.is_some(),
                        ..RadioItem::default()
                    })
                    .collect(),
            }
            .into()
        }
        Entry::Separator => MenuItem::Separator,
    }
}

/// A single underscore would mark the next letter as the item's key.
fn label(text: &str) -> String {
    text.replace('_', "__")
}

/// Tool tips may have markup.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::menu::Choice;

    #[test]
    fn what_is_clicked_is_passed_on_and_underscores_stay() {
        let (tell, mut told) = mpsc::unbounded_channel();
        let mut item = Item::new(View::default(), tell);
        item.view.menu = vec![
            Entry::Item {
                label: "web_1".into(),
                action: Some(Action::Quit),
            },
            Entry::Choice {
                selected: None,
                options: vec![Choice {
                    label: "a".into(),
                    action: Some(Action::Start("a".into())),
                }],
            },
        ];
        let mut menu = item.menu().into_iter();
        let (Some(MenuItem::Standard(quit)), Some(MenuItem::RadioGroup(group))) = (menu.next(), menu.next())
        else {
            panic!("an item and a group");
        };
        assert_eq!((quit.label.as_str(), quit.enabled), ("web__1", true));
        (quit.activate)(&mut item);
        (group.select)(&mut item, 0);
        (group.select)(&mut item, 9);
        item.menu_about_to_show();
        assert_eq!(told.try_recv(), Ok(FromPanel::Clicked(Action::Quit)));
        assert_eq!(told.try_recv(), Ok(FromPanel::Clicked(Action::Start("a".into()))));
        assert_eq!(told.try_recv(), Ok(FromPanel::MenuShown));
    }
}
