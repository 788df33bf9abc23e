//! Who is there: links that open, introduce themselves, fall silent and close.

use crossbeam_channel::{Sender, TrySendError};
use diffbulk_link::message::{FromHost, Hello, Role};

use super::{Closer, LinkId, State};
use crate::serve::metrics::count;
use crate::serve::peer::Tell;
use crate::serve::scan::Scan;

/// A link as the hub knows it.
pub(super) struct Link {
    pub(super) station: usize,
    pub(super) who: String,
    outbox: Sender<Tell>,
    pub(super) close: Closer,
    /// Set while the other end is there.
    pub(super) hello: Option<Hello>,
    /// Generation of the model that this host introduced itself with.
    introduced: u64,
}

impl State {
    pub(super) fn joined(
        &mut self,
        id: LinkId,
        station: usize,
        who: String,
        outbox: Sender<Tell>,
        close: Closer,
        introduced: u64,
    ) {
        tracing::info!(link = id, %who, "link open");
        self.links.insert(id, Link { station, who, outbox, close, hello: None, introduced });
        self.introduce(station);
    }

    /// Makes this host introduce itself to a station's links with the model of the scan under way
    /// there, or else with the newest one.
    pub(super) fn introduce(&mut self, number: usize) {
        let scan = self.stations.get(number).and_then(|station| station.scan.as_ref());
        let scan = scan.filter(|scan| !scan.is_ended());
        let served = scan.map_or(&self.hub.served, Scan::served);
        for link in self.links.values_mut() {
            if link.station != number || link.introduced == served.generation {
                continue;
            }
            // An outbox that is full is tried again with the next thing that happens.
            let hello = Tell::Introduce(Box::new(served.hello.clone()));
            if link.outbox.try_send(hello).is_ok() {
                link.introduced = served.generation;
            }
        }
    }

    pub(super) fn up(&mut self, id: LinkId, hello: Hello) {
        let Some(link) = self.links.get_mut(&id) else { return };
        tracing::info!(
            link = id, who = %link.who, role = ?hello.role, version = %hello.version,
            resume = ?hello.resume, "up"
        );
        let (role, resume, number) = (hello.role, hello.resume, link.station);
        link.hello = Some(hello);
        let Some(station) = self.stations.get_mut(number) else { return };
        let place = match role {
            Role::Board => &mut station.board,
            Role::Camera => &mut station.camera,
            Role::Host => {
                tracing::warn!(link = id, "the other end is a host too; this link is closed");
                link.close.close();
                return;
            }
        };
        if place.is_some_and(|other| other != id) {
            // The same end on a new link gets in when the old one's death is noticed, seconds
            // later. Another end must not: two would take the place from each other for ever.
            tracing::warn!(link = id, who = %link.who, ?role, "there is one already; closed");
            link.close.close();
            link.hello = None;
            return;
        }
        *place = Some(id);
        if role == Role::Board
            && let Some(scan) = &mut station.scan
        {
            scan.board_up(resume);
        }
        self.act(number);
    }

    pub(super) fn down(&mut self, id: LinkId, goodbye: bool) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.hello = None;
        let number = link.station;
        let Some(station) = self.stations.get_mut(number) else { return };
        if station.board == Some(id) {
            station.board = None;
            if let Some(scan) = &mut station.scan {
                scan.board_down();
            }
        }
        if station.camera == Some(id) {
            station.camera = None;
            // A camera that takes its leave after the end has heard of it.
            if goodbye && station.scan.as_ref().is_some_and(Scan::is_ended) {
                station.scan = None;
            }
        }
    }

    /// Says something to the other end of a link. The hub never waits: a link that does not take
    /// what it is told is closed.
    pub(super) fn tell(&self, link: Option<LinkId>, message: FromHost) {
        let Some(link) = link.and_then(|link| self.links.get(&link)) else { return };
        if let Err(TrySendError::Full(_)) = link.outbox.try_send(Tell::Say(Box::new(message))) {
            tracing::warn!(who = %link.who, "the other end does not take what it is sent");
            count(&self.hub.metrics.dropped);
            link.close.close();
        }
    }
}
