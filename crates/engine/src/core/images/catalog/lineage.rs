//! Which image was built of which.

use std::collections::{BTreeMap, BTreeSet};

use shoal_api::image::{ImageId, ImageRemoved, ImageUser};

use super::{Catalog, CatalogError};
use crate::core::images::Digest;

/// Builds on builds; more can only be a loop in a damaged catalogue.
const GENERATIONS_MAX: usize = 10_000;

impl Catalog {
    /// What an image was built of.
    pub fn parent(&self, id: &ImageId) -> Option<&ImageId> {
        self.images.get(id)?.built.as_ref()?.parent.as_ref()
    }

    /// All images that others were built of.
    pub(super) fn parents(&self) -> BTreeSet<&ImageId> {
        let built = self.images.values().filter_map(|row| row.built.as_ref());
        built.filter_map(|built| built.parent.as_ref()).collect()
    }

    /// An image, what it was built of, and so on as far as they are here.
    pub fn ancestry<'a>(&'a self, id: &'a ImageId) -> impl Iterator<Item = &'a ImageId> {
        std::iter::successors(Some(id), |id| self.parent(id))
            .take_while(|id| self.images.contains_key(*id))
            .take(GENERATIONS_MAX)
    }

    /// The newest image that this step made of `parent`.
    pub fn built_before(&self, parent: Option<&ImageId>, step: &Digest) -> Option<&ImageId> {
        let same = self.images.iter().filter(|(_, row)| {
            row.built.as_ref().is_some_and(|built| {
                built.parent.as_ref() == parent && built.step.as_ref() == Some(step)
            })
        });
        same.max_by_key(|(_, row)| row.spec.created)
            .map(|(id, _)| id)
    }

    /// Refuses the removal of an image that others were built of (moby's `checkImageDeleteConflict`).
    pub(super) fn check_children(&self, id: &ImageId) -> Result<(), CatalogError> {
        match self.parents().contains(id) {
            true => Err(CatalogError::Conflict(format!(
                "delete {} (cannot be forced) - image has dependent child images",
                id.short()
            ))),
            false => Ok(()),
        }
    }

    /// Removes an image, and what it was built of in turn, as long as nobody names, uses or builds on it.
    pub(super) fn remove_unneeded(
        &mut self,
        mut next: Option<ImageId>,
        users: &[ImageUser],
        removed: &mut Vec<ImageRemoved>,
    ) {
        while let Some(id) = next {
            let named = self.references.values().any(|image| *image == id);
            let used = users.iter().any(|user| user.image == id);
            if named || used || self.parents().contains(&id) || !self.images.contains_key(&id) {
                return;
            }
            next = self.parent(&id).cloned();
            self.delete(&id, removed);
        }
    }

    /// `docker builder prune`: forgets images that builds left behind without a name; with `all` also those that
    /// named images were built of. Ends when what only builds need takes no more than `keep` bytes. Returns what is gone,
    /// and the unpacked bytes that were freed.
    pub fn prune_builds(
        &mut self,
        all: bool,
        keep: u64,
        which: impl Fn(&super::ImageSummary) -> bool,
        users: &[ImageUser],
    ) -> (Vec<ImageId>, u64) {
        let mut needed: BTreeSet<ImageId> = users.iter().map(|user| user.image.clone()).collect();
        let named: Vec<ImageId> = self.references.values().cloned().collect();
        for id in named {
            if all {
                needed.insert(id);
            } else {
                needed.extend(self.ancestry(&id).cloned());
            }
        }
        let before = self.layers_bytes();
        let (mut gone, mut removed) = (Vec::new(), Vec::new());
        let mut left: Vec<ImageId> = self
            .list()
            .into_iter()
            .filter(|image| {
                let built = self.images[&image.id].built.is_some();
                built && !needed.contains(&image.id) && which(image)
            })
            .map(|image| image.id)
            .collect();
        // The oldest first, but never what another one was built of: it would be of no use without.
        left.reverse();
        while keep == 0 || self.bytes_of_builds(&needed) > keep {
            let parents: BTreeSet<&ImageId> =
                left.iter().filter_map(|id| self.parent(id)).collect();
            let Some(at) = left.iter().position(|id| !parents.contains(id)) else {
                break;
            };
            let id = left.remove(at);
            self.delete(&id, &mut removed);
            gone.push(id);
        }
        (gone, before.saturating_sub(self.layers_bytes()))
    }

    /// Unpacked bytes of the layers that nothing but builds needs.
    fn bytes_of_builds(&self, needed: &BTreeSet<ImageId>) -> u64 {
        let (mut own, mut shared) = (BTreeMap::new(), BTreeSet::new());
        for (id, row) in &self.images {
            for layer in &row.layers {
                if row.built.is_some() && !needed.contains(id) {
                    own.insert(&layer.chain_id, layer.size);
                } else {
                    shared.insert(&layer.chain_id);
                }
            }
        }
        let own = own.into_iter().filter(|(chain, _)| !shared.contains(chain));
        own.map(|(_, size)| size).sum()
    }
}

#[cfg(test)]
mod tests {
    use shoal_api::Timestamp;

    use super::super::{
        Built,
        tests::{id_of, row},
    };
    use super::*;

    /// `app` was built of `step`, that of `base`; `base` and `app` have names.
    fn catalog() -> Catalog {
        let mut catalog = Catalog::default();
        let mut add = |name: &str, parent: Option<&str>, layers: &[&str]| {
            let mut row = row(layers);
            row.built = parent.map(|parent| Built {
                parent: Some(id_of(parent)),
                step: Some(Digest::of(b"step")),
            });
            catalog.insert(id_of(name), row);
        };
        add("base", None, &["base"]);
        add("step", Some("base"), &["base", "s"]);
        add("app", Some("step"), &["base", "s", "a"]);
        for name in ["base", "app"] {
            let reference = format!("{name}:1").parse().unwrap();
            catalog.name(reference, &id_of(name), Timestamp(7));
        }
        catalog
    }

    #[test]
    fn a_step_is_found_again_by_its_parent() {
        let catalog = catalog();
        let step = Digest::of(b"step");
        assert_eq!(
            catalog.built_before(Some(&id_of("base")), &step),
            Some(&id_of("step"))
        );
        assert_eq!(catalog.built_before(Some(&id_of("app")), &step), None);
        assert_eq!(
            catalog.built_before(Some(&id_of("base")), &Digest::of(b"x")),
            None
        );
        let (app, step) = (id_of("app"), id_of("step"));
        assert_eq!(catalog.ancestry(&app).count(), 3);
        let listed = catalog.list();
        assert!(
            listed
                .iter()
                .any(|image| image.id == step && image.intermediate)
        );
    }

    #[test]
    fn an_image_that_others_stand_on_only_loses_its_name() {
        let mut catalog = catalog();
        let refused = catalog.remove(&id_of("step").to_string(), true, &[]);
        assert_eq!(
            refused.unwrap_err().to_string(),
            format!(
                "conflict: unable to delete {} (cannot be forced) - image has dependent child images",
                id_of("step").short()
            )
        );
        let plan = catalog.remove("base:1", false, &[]).unwrap();
        assert!(!plan.deleted && catalog.get(&id_of("base")).is_some());
        let plan = catalog.remove("app:1", false, &[]).unwrap();
        assert!(plan.deleted && catalog.list().is_empty(), "{plan:?}");
    }

    #[test]
    fn removal_takes_unnamed_parents_along_and_stops_at_named_ones() {
        let mut catalog = catalog();
        catalog.remove("app:1", false, &[]).unwrap();
        let left: Vec<_> = catalog.list().into_iter().map(|image| image.id).collect();
        assert_eq!(left, [id_of("base")]);
    }

    #[test]
    fn builds_are_pruned_without_touching_names() {
        let mut first = catalog();
        assert_eq!(first.prune_builds(false, 0, |_| true, &[]), (Vec::new(), 0));
        assert_eq!(
            first.prune_builds(true, 0, |_| true, &[]).0,
            [id_of("step")]
        );
        assert!(first.get(&id_of("app")).is_some());
        let mut second = catalog();
        second.remove_one("app:1", false, &[]).unwrap();
        let (gone, bytes) = second.prune_builds(false, 0, |_| true, &[]);
        assert_eq!((gone, bytes), (vec![id_of("step")], 10));
        // As much is kept as may be, and rather the beginnings of what was built than their ends.
        let unnamed = || {
            let mut catalog = catalog();
            catalog.forget_names(&id_of("app"), |_| true, &mut Vec::new());
            catalog
        };
        for (keep, gone) in [
            (20, vec![]),
            (19, vec!["app"]),
            (10, vec!["app"]),
            (9, vec!["app", "step"]),
        ] {
            let gone: Vec<_> = gone.into_iter().map(id_of).collect();
            assert_eq!(
                unnamed().prune_builds(false, keep, |_| true, &[]).0,
                gone,
                "{keep}"
            );
        }
    }
}
