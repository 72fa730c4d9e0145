//! The icon's pictures: drawn as SVG in `icons/`, rendered to the sizes that panels ask for.

use std::collections::BTreeMap;
use std::sync::Arc;

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree};

use crate::model::Look;
use crate::words::PHASES;

/// The sizes, in pixels, of usual panels and of those on dense screens.
const SIZES: [u32; 6] = [16, 22, 24, 32, 48, 64];

/// The dashes of the progress in `icons/starting.svg`, and their circle's radius.
const PROGRESS: &str = "stroke-dasharray=\"18 100\"";
const RADIUS: f64 = 5.75;

/// A picture of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Picture {
    /// Its width and height in pixels.
    pub(crate) size: u32,
    /// Its pixels, line by line: red, green, blue and alpha, a byte each.
    pub(crate) rgba: Vec<u8>,
}

/// The pictures that were wanted so far.
#[derive(Debug, Default)]
pub(crate) struct Pictures(BTreeMap<Look, Arc<Vec<Picture>>>);

impl Pictures {
    /// Those of one look, smallest first.
    pub(crate) fn of(&mut self, look: Look) -> Arc<Vec<Picture>> {
        let pictures = self.0.entry(look).or_insert_with(|| {
            let all = SIZES.iter().filter_map(|size| render(look, *size));
            Arc::new(all.collect())
        });
        Arc::clone(pictures)
    }
}

impl Picture {
    /// The pixels as status icons have them: alpha, red, green, blue.
    pub(crate) fn argb(&self) -> Vec<u8> {
        let mut argb = self.rgba.clone();
        for pixel in argb.chunks_exact_mut(4) {
            pixel.rotate_right(1);
        }
        argb
    }
}

fn source(look: Look) -> String {
    match look {
        Look::Stopped => include_str!("../icons/stopped.svg").to_owned(),
        Look::Running => include_str!("../icons/running.svg").to_owned(),
        Look::Warning => include_str!("../icons/warning.svg").to_owned(),
        Look::Failed => include_str!("../icons/failed.svg").to_owned(),
        Look::Starting(done) => {
            // A little at first, so that it is seen to be a beginning.
            let part = (f64::from(done) + 0.5) / (PHASES.len() as f64 + 0.5);
            let length = std::f64::consts::TAU * RADIUS * part;
            let dashes = format!("stroke-dasharray=\"{length:.2} 100\"");
            include_str!("../icons/starting.svg").replace(PROGRESS, &dashes)
        }
    }
}

/// None is what only a broken file in `icons/` gives, which the tests would not let pass.
fn render(look: Look, size: u32) -> Option<Picture> {
    let tree = Tree::from_str(&source(look), &Options::default()).ok()?;
    let mut pixmap = Pixmap::new(size, size)?;
    let scale = size as f32 / tree.size().width();
    resvg::render(&tree, Transform::from_scale(scale, scale), &mut pixmap.as_mut());
    let rgba = pixmap.pixels().iter().flat_map(|pixel| {
        let color = pixel.demultiply();
        [color.red(), color.green(), color.blue(), color.alpha()]
    });
    Some(Picture {
        size,
        rgba: rgba.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOKS: [Look; 7] = [
        Look::Stopped,
        Look::Starting(0),
        Look::Starting(3),
        Look::Starting(6),
        Look::Running,
        Look::Warning,
        Look::Failed,
    ];

    #[test]
    fn every_look_has_every_size() {
        let mut pictures = Pictures::default();
        for look in LOOKS {
            let sizes: Vec<_> = pictures.of(look).iter().map(|picture| picture.size).collect();
            assert_eq!(sizes, SIZES, "{look:?}");
            for picture in pictures.of(look).iter() {
                assert_eq!(picture.rgba.len() as u32, picture.size * picture.size * 4);
                let opaque = picture.rgba.chunks(4).filter(|pixel| pixel[3] > 200).count();
                assert!(
                    opaque as u32 > picture.size * picture.size / 3,
                    "{look:?} is seen"
                );
            }
        }
    }

    #[test]
    fn looks_differ_in_every_size_and_progress_is_seen() {
        let mut pictures = Pictures::default();
        let all: Vec<Vec<Picture>> = LOOKS.iter().map(|look| pictures.of(*look).to_vec()).collect();
        for (at, one) in all.iter().enumerate() {
            for other in &all[at + 1..] {
                for (one, other) in one.iter().zip(other) {
                    let differing = one
                        .rgba
                        .chunks(4)
                        .zip(other.rgba.chunks(4))
                        .filter(|(one, other)| one != other)
                        .count();
                    assert!(differing as u32 > one.size * one.size / 40);
                }
            }
        }
    }

    #[test]
    fn the_progress_is_where_it_is_looked_for() {
        assert!(include_str!("../icons/starting.svg").contains(PROGRESS));
    }

    #[test]
    fn pixels_are_turned_to_the_order_of_status_icons() {
        let picture = Picture {
            size: 1,
            rgba: vec![1, 2, 3, 4],
        };
        assert_eq!(picture.argb(), [4, 1, 2, 3]);
    }
}
