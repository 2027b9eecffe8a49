//! Growth of devices: the device is the operator's to make larger, its file system follows (kubelet.md 4.13, 8).

use std::sync::Arc;

use super::chooser::Chooser;
use super::{View, arguments};
use crate::model::{
    DeviceWant, ExpandStep, ExpansionState, Growth, HavePublication, PublicationPlan, Step, StepKind,
};

impl View<'_> {
    /// Returns what a device's file system is to grow to before its first pod gets it.
    pub(super) fn device_growth(&self, device: &DeviceWant, plan: &PublicationPlan) -> Option<Growth> {
        let size = device.size?;
        let arguments = arguments::expand_device(plan.arguments.as_ref()?, size.capacity);
        Some(Growth {
            size,
            read_only: device.source_read_only,
            arguments,
            secrets: Arc::clone(&device.secrets),
        })
    }

    /// Grows the file system of a device that is up: when its PersistentVolume says more than before, when that was begun, and, if
    /// that is wished, when the kernel says that a disk has another size.
    pub(super) fn grow_device(&self, device: &DeviceWant, have: &HavePublication, chooser: &mut Chooser<'_>) {
        let (Some(volume), Some(shown)) = (self.have, &have.arguments) else { return };
        let offered = chooser.decision.step.as_ref().is_some_and(|step| step.kind() == StepKind::Expand);
        if device.source_read_only || offered {
            return;
        }
        let open = volume.expansion.as_ref().is_some_and(|one| one.state == ExpansionState::Open);
        let wanted = device.size.map(|size| size.capacity).filter(|wanted| {
            // What nobody knows is as large as its manifest says, as for a kubelet.
            open || volume.size.is_some_and(|size| *wanted > size)
        });
        let follows = (open || device.auto_grow && self.world.orders.resized).then_some(0);
        let Some(required) = wanted.or(follows) else { return };
        let (key, arguments) = (self.key.clone(), arguments::expand_device(shown, required));
        let secrets = Arc::clone(&device.secrets);
        chooser.offer(Step::Expand(Box::new(ExpandStep { key, arguments, secrets })));
    }
}
