//! Network device (virtio 1.2, 5.1): Ethernet frames between the guest and one stream socket.
//!
//! The socket speaks the protocol of passt and of QEMU's stream backend: each frame is preceded by its length, four bytes,
//! big-endian. The host side may come, go and be replaced at any time ([`NetLink`]); the guest keeps its link, and frames
//! that have nowhere to go are dropped, as on a cable that leads into a switch without other stations.
//!
//! A slow side stops the other one: the socket is not read while the guest offers no buffers, and the guest's frames stay
//! in its queue while the socket is full.

mod connection;
mod link;
mod receive;
mod worker;

use std::{io, sync::Arc};

use virtio_bindings::{
    virtio_ids::VIRTIO_ID_NET,
    virtio_net::{
        VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
    },
};

pub use self::link::{NetLink, NetStats};
use self::{receive::Receiver, worker::Worker};
use super::{ActivateError, Activation, VirtioDevice, device::read_config_bytes, serve::RunningWorker};

const QUEUE_SIZE: u16 = 256;
const RECEIVE_QUEUE: u16 = 0;
const TRANSMIT_QUEUE: u16 = 1;

/// struct virtio_net_hdr with num_buffers (5.1.6), which precedes every frame in the queues. No offload is offered, so
/// the device has nothing to say in it but how many buffers a frame takes.
const HEADER_SIZE: usize = 12;
/// The shortest frame that is one: addresses and type.
const MIN_FRAME: usize = 14;
/// The longest frame: an IP packet of 65535 bytes behind an Ethernet header with a VLAN tag.
const MAX_FRAME: usize = 65_535 + 18;

/// What a network device is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetConfig {
    /// The guest's address on the link.
    pub mac: [u8; 6],
    /// The largest packet for the guest to send, in bytes from 1280 to 65535; none: the driver's default, 1500.
    pub mtu: Option<u16>,
}

/// Why a network device could not be made or connected.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The signal between a link and its device could not be made or given.
    #[error("the network device could not be told of its link")]
    Signal(#[source] io::Error),
    /// The MTU is out of range.
    #[error("an MTU of {0} bytes is too small; IPv6 needs 1280 at least")]
    Mtu(u16),
}

/// The network device.
pub struct Net {
    config: NetConfig,
    link: NetLink,
    running: Option<RunningWorker>,
}

/// Makes a network device with this address and the default MTU, and the host's end of it.
pub fn net(mac: [u8; 6]) -> Result<(Net, NetLink), NetError> {
    net_with(NetConfig { mac, mtu: None })
}

/// Makes a network device, and the host's end of it.
pub fn net_with(config: NetConfig) -> Result<(Net, NetLink), NetError> {
    if let Some(mtu) = config.mtu
        && mtu < 1280
    {
        return Err(NetError::Mtu(mtu));
    }
    let link = NetLink::new()?;
    let net = Net {
        config,
        link: link.clone(),
        running: None,
    };
    Ok((net, link))
}

impl VirtioDevice for Net {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS | 1 << VIRTIO_NET_F_MRG_RXBUF;
        if self.config.mtu.is_some() {
            features |= 1 << VIRTIO_NET_F_MTU;
        }
        features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // struct virtio_net_config (5.1.4).
        let mut space = [0; 12];
        space[..6].copy_from_slice(&self.config.mac);
        if self.link.is_up() {
            space[6..8].copy_from_slice(&(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        }
        space[8..10].copy_from_slice(&1u16.to_le_bytes());
        space[10..].copy_from_slice(&self.config.mtu.unwrap_or_default().to_le_bytes());
        read_config_bytes(&space, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let receive = activation.require_queue(RECEIVE_QUEUE)?;
        let transmit = activation.require_queue(TRANSMIT_QUEUE)?;
        let mergeable = activation.features & (1 << VIRTIO_NET_F_MRG_RXBUF) != 0;
        self.link.set_interrupt(Some(Arc::clone(&activation.interrupt)));
        let worker = Worker::new(Receiver::new(receive, mergeable), transmit, self.link.clone());
        self.running = Some(RunningWorker::start(activation.event_loop, Box::new(worker))?);
        Ok(())
    }

    fn deactivate(&mut self) {
        self.running = None;
        self.link.set_interrupt(None);
    }
}

#[cfg(test)]
mod tests;
