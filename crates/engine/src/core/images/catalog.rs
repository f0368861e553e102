//! The images of one host and their names.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use shoal_api::{
    Timestamp,
    image::{ImageHistory, ImageId, ImageInspect, ImageRemoved, ImageSummary, ImageUser},
};

use super::{Descriptor, Digest, ImageSpec, InvalidReference, Reference};

/// One unpacked layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    pub diff_id: Digest,
    /// Names its directory.
    pub chain_id: Digest,
    /// The packed form, as it came and as it is pushed.
    pub blob: Descriptor,
    /// Bytes of its files.
    pub size: u64,
}

/// What is known about one image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageRow {
    pub manifest: Descriptor,
    pub config_size: u64,
    pub spec: ImageSpec,
    /// Lowest first.
    pub layers: Vec<Layer>,
    pub last_tagged: Timestamp,
    /// How it was made on this host; absent for one that came from elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built: Option<Built>,
    /// The boot of the machine in which it came, as long as its content may not have reached the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsynced: Option<String>,
}

/// The making of an image on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Built {
    /// The image it was made of; that one may be gone by now.
    pub parent: Option<ImageId>,
    /// Stands for the step and all that it depends on besides the parent; absent if it may not be used again.
    pub step: Option<Digest>,
}

/// Images by id, and names to ids. A name is a tag (`repo:tag`) or a digest (`repo@sha256:…`);
/// both always point to an image that exists.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Catalog {
    references: BTreeMap<Reference, ImageId>,
    images: BTreeMap<ImageId, ImageRow>,
}

/// A question about images that cannot be answered, or an order that cannot be followed; docker's texts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    #[error("No such image: {0}")]
    NotFound(String),
    #[error(transparent)]
    Name(#[from] InvalidReference),
    #[error("refusing to create a tag with a digest reference")]
    TagWithDigest,
    #[error("conflict: unable to {0}")]
    Conflict(String),
}

/// The outcome of a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovePlan {
    pub removed: Vec<ImageRemoved>,
    /// The id of the image the names stood for, and whether it is gone.
    pub image: ImageId,
    pub deleted: bool,
    /// What it was built of.
    pub parent: Option<ImageId>,
}

impl Catalog {
    /// Adds an image, or refreshes what is known about it.
    pub fn insert(&mut self, id: ImageId, mut row: ImageRow) {
        let known = self.images.get(&id);
        if known.is_some_and(|known| known.unsynced.is_none() && known.layers == row.layers) {
            row.unsynced = None;
        }
        self.images.insert(id, row);
    }

    /// Images whose content may not have reached the disk.
    pub fn unsynced(&self) -> impl Iterator<Item = &ImageId> {
        let unsynced = self.images.iter().filter(|(_, row)| row.unsynced.is_some());
        unsynced.map(|(id, _)| id)
    }

    /// Notes that the content of these has reached the disk.
    pub fn synced(&mut self, ids: &[ImageId]) {
        for id in ids {
            if let Some(row) = self.images.get_mut(id) {
                row.unsynced = None;
            }
        }
    }

    /// Removes images that came in another boot than this one and never were known to have reached the disk.
    pub fn drop_unsynced(&mut self, boot: &str) -> Vec<ImageId> {
        let lost = self
            .images
            .iter()
            .filter(|(_, row)| row.unsynced.as_deref().is_some_and(|came| came != boot));
        let lost: Vec<ImageId> = lost.map(|(id, _)| id.clone()).collect();
        for id in &lost {
            self.images.remove(id);
            self.references.retain(|_, image| image != id);
        }
        lost
    }

    /// The row of an image.
    pub fn get(&self, id: &ImageId) -> Option<&ImageRow> {
        self.images.get(id)
    }

    /// Points a name to an image that is in the catalogue; a tag moves, its former image stays without it.
    pub fn name(&mut self, reference: Reference, id: &ImageId, now: Timestamp) {
        debug_assert!(reference.tag().is_some() != reference.digest().is_some());
        if let Some(row) = self.images.get_mut(id) {
            row.last_tagged = now;
            self.references.insert(reference, id.clone());
        }
    }

    /// `docker tag`.
    pub fn tag(
        &mut self,
        source: &str,
        target: &str,
        now: Timestamp,
    ) -> Result<ImageId, CatalogError> {
        let id = self.resolve(source)?.clone();
        let target = target.parse::<Reference>()?.or_latest();
        if target.digest().is_some() {
            return Err(CatalogError::TagWithDigest);
        }
        self.name(target, &id, now);
        Ok(id)
    }

    /// Finds an image by id, name, name and tag, name and digest, or the beginning of its id, in this order.
    pub fn resolve(&self, text: &str) -> Result<&ImageId, CatalogError> {
        if let Ok(id) = text.parse::<ImageId>() {
            let found = self.images.get_key_value(&id).map(|(id, _)| id);
            return found.ok_or_else(|| CatalogError::NotFound(text.to_owned()));
        }
        let reference = text.parse::<Reference>().map(Reference::or_latest);
        if let Ok(reference) = &reference
            && let Some(id) = self.lookup(reference)
        {
            return Ok(id);
        }
        if let Some(id) = self.by_prefix(text) {
            return Ok(id);
        }
        match reference {
            Ok(reference) => Err(CatalogError::NotFound(reference.familiar())),
            Err(error) => Err(error.into()),
        }
    }

    /// The image a name points to. With tag and digest both given, the digest counts, as in docker.
    fn lookup(&self, reference: &Reference) -> Option<&ImageId> {
        let key = match reference.digest() {
            Some(digest) => reference.at(digest.clone()),
            None => reference.clone(),
        };
        self.references.get(&key)
    }

    fn by_prefix(&self, text: &str) -> Option<&ImageId> {
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        if prefix.is_empty()
            || !prefix
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            return None;
        }
        let mut matches = self.images.keys().filter(|id| id.hex().starts_with(prefix));
        let first = matches.next();
        // An ambiguous prefix names nothing.
        first.filter(|_| matches.next().is_none())
    }

    /// The tags, and the digests, by which an image is known.
    pub fn names(&self, id: &ImageId) -> (Vec<Reference>, Vec<Reference>) {
        let of_image = self.references.iter().filter(|(_, image)| *image == id);
        of_image
            .map(|(name, _)| name.clone())
            .partition(|name| name.digest().is_none())
    }

    /// All images, newest first.
    pub fn list(&self) -> Vec<ImageSummary> {
        let parents = self.parents();
        let mut rows: Vec<_> = self
            .images
            .iter()
            .map(|(id, row)| {
                let (tags, digests) = self.names(id);
                ImageSummary {
                    id: id.clone(),
                    repo_tags: familiar(&tags),
                    repo_digests: familiar(&digests),
                    created: row.spec.created,
                    size: row.size(),
                    labels: row.spec.config.labels.clone(),
                    parent: row.built.as_ref().and_then(|built| built.parent.clone()),
                    intermediate: parents.contains(id),
                }
            })
            .collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.created));
        rows
    }

    /// `docker image inspect`; `layer_dir` tells where a layer is unpacked.
    pub fn inspect(
        &self,
        text: &str,
        layer_dir: impl Fn(&Digest) -> String,
    ) -> Result<ImageInspect, CatalogError> {
        let id = self.resolve(text)?;
        let row = &self.images[id];
        let (tags, digests) = self.names(id);
        Ok(ImageInspect {
            id: id.clone(),
            parent: row.built.as_ref().and_then(|built| built.parent.clone()),
            repo_tags: familiar(&tags),
            repo_digests: familiar(&digests),
            comment: row.spec.comment.clone(),
            author: row.spec.author.clone(),
            created: row.spec.created,
            config: row.spec.config.clone(),
            architecture: row.spec.platform.architecture.clone(),
            variant: row.spec.platform.variant.clone(),
            os: row.spec.platform.os.clone(),
            size: row.size(),
            diff_ids: row.spec.diff_ids.iter().map(Digest::to_string).collect(),
            layer_dirs: row
                .layers
                .iter()
                .map(|layer| layer_dir(&layer.chain_id))
                .collect(),
            last_tagged: row.last_tagged,
        })
    }

    /// `docker history`, newest first.
    pub fn history(&self, text: &str) -> Result<Vec<ImageHistory>, CatalogError> {
        let id = self.resolve(text)?;
        let row = &self.images[id];
        let mut layers = row.layers.iter();
        let mut steps: Vec<_> = row
            .spec
            .history
            .iter()
            .map(|step| ImageHistory {
                id: None,
                created: step.created,
                created_by: step.created_by.clone(),
                comment: step.comment.clone(),
                size: if step.empty_layer {
                    0
                } else {
                    layers.next().map_or(0, |layer| layer.size)
                },
                tags: Vec::new(),
            })
            .collect();
        steps.reverse();
        for (step, image) in steps.iter_mut().zip(self.ancestry(id)) {
            step.id = Some(image.clone());
            step.tags = familiar(&self.names(image).0);
        }
        Ok(steps)
    }

    /// The digests of every blob, and of every unpacked chain, that some image needs.
    pub fn needed(&self) -> (BTreeSet<Digest>, BTreeSet<Digest>) {
        let (mut blobs, mut chains) = (BTreeSet::new(), BTreeSet::new());
        for (id, row) in &self.images {
            blobs.insert(row.manifest.digest.clone());
            blobs.insert(Digest::from(id));
            for layer in &row.layers {
                blobs.insert(layer.blob.digest.clone());
                chains.insert(layer.chain_id.clone());
            }
        }
        (blobs, chains)
    }

    /// `docker rmi`: removes a name, and the image with its last one.
    ///
    /// `users` are the containers on this host. On error nothing has changed. Rules and texts are
    /// those of moby's `ImageDelete`.
    pub fn remove(
        &mut self,
        text: &str,
        force: bool,
        users: &[ImageUser],
    ) -> Result<RemovePlan, CatalogError> {
        let mut plan = self.remove_one(text, force, users)?;
        if plan.deleted {
            self.remove_unneeded(plan.parent.clone(), users, &mut plan.removed);
        }
        Ok(plan)
    }

    /// The same, but leaves the images it was built of, even those without a name (`--no-prune`).
    pub fn remove_one(
        &mut self,
        text: &str,
        force: bool,
        users: &[ImageUser],
    ) -> Result<RemovePlan, CatalogError> {
        let id = self.resolve(text)?.clone();
        let mut next = self.clone();
        let mut plan = RemovePlan {
            removed: Vec::new(),
            image: id.clone(),
            parent: self.parent(&id).cloned(),
            deleted: false,
        };
        let by_id = is_id_prefix(&id, text);
        if by_id {
            if next.has_single_name(&id) {
                next.check_users(&id, force, users)?;
                next.forget_names(&id, |_| true, &mut plan.removed);
            }
        } else {
            if !force
                && next.has_single_name(&id)
                && let Some(user) = users.iter().find(|user| user.image == id)
            {
                return Err(CatalogError::Conflict(format!(
                    "remove repository reference {text:?} (must force) - container {} is using its referenced image {}",
                    short(&user.container),
                    id.short()
                )));
            }
            let given = text.parse::<Reference>()?.or_latest();
            let given = match given.digest() {
                Some(digest) => given.at(digest.clone()),
                None => given,
            };
            next.forget_names(&id, |name| *name == given, &mut plan.removed);
            // Digests of a repository do not outlive its last tag.
            let (tags, _) = next.names(&id);
            if given.digest().is_none() && !tags.iter().any(|tag| tag.same_repository(&given)) {
                next.forget_names(&id, |name| name.same_repository(&given), &mut plan.removed);
            }
            if next.references.values().any(|image| *image == id) {
                *self = next;
                return Ok(plan);
            }
        }

        let referenced = next.references.values().any(|image| *image == id);
        let blocked = match next
            .check_children(&id)
            .and_then(|()| next.check_users(&id, force, users))
        {
            Err(conflict) => Some(conflict),
            Ok(()) if referenced && !force => Some(CatalogError::Conflict(format!(
                "delete {} (must be forced) - image is referenced in multiple repositories",
                id.short()
            ))),
            Ok(()) => None,
        };
        let held = users.iter().any(|user| user.image == id);
        match blocked {
            // The name is gone, which is what was asked for; the image lives on for its containers.
            Some(_) if !by_id => {}
            Some(conflict) => return Err(conflict),
            // A stopped container may be started again: its layers stay, only the names go.
            None if held => next.forget_names(&id, |_| true, &mut plan.removed),
            None => {
                next.delete(&id, &mut plan.removed);
                plan.deleted = true;
            }
        }
        *self = next;
        Ok(plan)
    }

    /// `docker image prune`: removes the images that `which` chooses and no container uses, with all their names.
    /// Returns what is gone, and the unpacked bytes of the layers that are.
    pub fn prune(
        &mut self,
        which: impl Fn(&ImageSummary) -> bool,
        users: &[ImageUser],
    ) -> (Vec<ImageRemoved>, u64) {
        let sizes = |catalog: &Self| -> BTreeMap<Digest, u64> {
            let layers = catalog.images.values().flat_map(|row| &row.layers);
            layers
                .map(|layer| (layer.chain_id.clone(), layer.size))
                .collect()
        };
        let before = sizes(self);
        let mut removed = Vec::new();
        // Removing an image may leave the one it was built of without use.
        loop {
            let mut candidates = self.list();
            candidates.retain(|image| {
                !image.intermediate
                    && which(image)
                    && !users.iter().any(|user| user.image == image.id)
            });
            if candidates.is_empty() {
                break;
            }
            for image in candidates {
                let parent = self.parent(&image.id).cloned();
                self.delete(&image.id, &mut removed);
                self.remove_unneeded(parent, users, &mut removed);
            }
        }
        let after = sizes(self);
        let gone = before
            .iter()
            .filter(|(chain, _)| !after.contains_key(*chain));
        (removed, gone.map(|(_, size)| size).sum())
    }

    /// Removes an image with its names; tells which of its layers no other image needs, topmost first.
    fn delete(&mut self, id: &ImageId, removed: &mut Vec<ImageRemoved>) {
        self.forget_names(id, |_| true, removed);
        let Some(row) = self.images.remove(id) else {
            return;
        };
        removed.push(ImageRemoved::Deleted(id.to_string()));
        let (_, chains) = self.needed();
        let gone = row.layers.iter().rev();
        let gone = gone.filter(|layer| !chains.contains(&layer.chain_id));
        removed.extend(gone.map(|layer| ImageRemoved::Deleted(layer.chain_id.to_string())));
    }

    /// Unpacked bytes of all layers, each counted once.
    pub fn layers_bytes(&self) -> u64 {
        let layers = self.images.values().flat_map(|row| &row.layers);
        let sizes: BTreeMap<_, _> = layers.map(|layer| (&layer.chain_id, layer.size)).collect();
        sizes.values().sum()
    }

    /// The image that all of `names` stand for already, if there is one.
    pub fn named_by_all(&self, names: &[Reference]) -> Option<(&ImageId, &ImageRow)> {
        let id = self.references.get(names.first()?)?;
        let same = names
            .iter()
            .all(|name| self.references.get(name) == Some(id));
        same.then(|| self.images.get_key_value(id))?
    }

    /// At most one tag, and all digests in the repository of that tag (moby's `isSingleReference`).
    fn has_single_name(&self, id: &ImageId) -> bool {
        let (tags, digests) = self.names(id);
        match (tags.as_slice(), digests.as_slice()) {
            ([], []) | ([_], []) | ([], [_]) => true,
            ([one], digests) | ([], digests @ [one, ..]) => {
                digests.iter().all(|name| name.same_repository(one))
            }
            _ => false,
        }
    }

    fn check_users(
        &self,
        id: &ImageId,
        force: bool,
        users: &[ImageUser],
    ) -> Result<(), CatalogError> {
        let mut users = users
            .iter()
            .filter(|user| user.image == *id && (user.running || !force));
        let first = users
            .clone()
            .find(|user| user.running)
            .or_else(|| users.next());
        let Some(user) = first else { return Ok(()) };
        let (how, state) = if user.running {
            ("cannot be forced", "running")
        } else {
            ("must be forced", "stopped")
        };
        Err(CatalogError::Conflict(format!(
            "delete {} ({how}) - image is being used by {state} container {}",
            id.short(),
            short(&user.container)
        )))
    }

    fn forget_names(
        &mut self,
        id: &ImageId,
        which: impl Fn(&Reference) -> bool,
        removed: &mut Vec<ImageRemoved>,
    ) {
        let names: Vec<_> = self
            .references
            .iter()
            .filter(|(name, image)| *image == id && which(name))
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            self.references.remove(&name);
            removed.push(ImageRemoved::Untagged(name.familiar()));
        }
    }
}

impl ImageRow {
    /// Bytes of all layers, unpacked.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }
}

fn familiar(names: &[Reference]) -> Vec<String> {
    names.iter().map(Reference::familiar).collect()
}

fn is_id_prefix(id: &ImageId, text: &str) -> bool {
    id.hex()
        .starts_with(text.strip_prefix("sha256:").unwrap_or(text))
}

fn short(container: &str) -> &str {
    container.get(..12).unwrap_or(container)
}

mod lineage;
#[cfg(test)]
mod tests;
