//! The thread that owns the device: gathers the tiles that sessions hand in to batches, and keeps one
//! batch running while the next is prepared and the last is read.
//!
//! Sessions only wait on channels, so a driver that hangs inside a call is noticed by them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use super::resident::{Flight, Resident, SLOTS};

/// A tile to be predicted, and who waits for it.
pub(super) struct Order {
    image: Vec<u8>,
    reply: Sender<Result<Vec<f32>, String>>,
}

/// What sessions hold of the worker; it ends with the last of them.
#[derive(Clone)]
pub(super) struct Desk {
    orders: Sender<Order>,
    deadline: Duration,
}

impl Desk {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn open(resident: Arc<Resident>) -> Result<Self, String> {
        let deadline = resident.device.deadline();
        let (orders, inbox) = mpsc::channel();
        std::thread::Builder::new()
            .name("diffbulk-gpu".into())
            .spawn(move || serve(&resident, &inbox, deadline))
            .map_err(|error| format!("the system gives no thread for the device: {error}"))?;
        Ok(Self { orders, deadline })
    }

    /// Predicts one tile, together with those of other sessions.
    ///
    /// # Errors
    /// When the device fails, now or before, or does not answer.
    pub(super) fn predict(&self, image: &[u8]) -> Result<Vec<f32>, String> {
        let (reply, answer) = mpsc::channel();
        let order = Order { image: image.to_vec(), reply };
        self.orders.send(order).map_err(|_| String::from("the device's thread has ended"))?;
        // The batches before this tile's have their own deadlines; the call into the driver has none.
        match answer.recv_timeout(self.deadline * (SLOTS as u32 + 1)) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => Err("the driver does not answer any more".into()),
            Err(RecvTimeoutError::Disconnected) => Err("the device's thread has ended".into()),
        }
    }
}

type Waiting = Vec<Sender<Result<Vec<f32>, String>>>;

fn serve(resident: &Resident, inbox: &Receiver<Order>, deadline: Duration) {
    let mut under_way: VecDeque<(Flight, Waiting)> = VecDeque::new();
    let mut slot = 0;
    loop {
        if under_way.len() < SLOTS {
            let first = match under_way.is_empty() {
                true => match inbox.recv() {
                    Ok(order) => Some(order),
                    Err(_) => return,
                },
                false => inbox.try_recv().ok(),
            };
            if let Some(first) = first {
                let mut orders = vec![first];
                while orders.len() < resident.batch
                    && let Ok(order) = inbox.try_recv()
                {
                    orders.push(order);
                }
                let tiles: Vec<&[u8]> = orders.iter().map(|order| &order.image[..]).collect();
                let submitted = resident.submit(slot, &tiles);
                let waiting: Waiting = orders.into_iter().map(|order| order.reply).collect();
                match submitted {
                    Ok(flight) => under_way.push_back((flight, waiting)),
                    Err(problem) => return refuse(inbox, under_way, waiting, &problem),
                }
                slot = (slot + 1) % SLOTS;
                continue;
            }
        }
        let Some((flight, waiting)) = under_way.pop_front() else { continue };
        match resident.wait(flight, deadline) {
            Ok(values) => {
                for (reply, values) in waiting.into_iter().zip(values) {
                    // A session that has given up does not listen.
                    let _ = reply.send(Ok(values));
                }
            }
            Err(problem) => return refuse(inbox, under_way, waiting, &problem),
        }
    }
}

/// A device that has failed stays failed: everyone is told, now and later.
fn refuse(
    inbox: &Receiver<Order>,
    under_way: VecDeque<(Flight, Waiting)>,
    waiting: Waiting,
    problem: &str,
) {
    let all = waiting.into_iter().chain(under_way.into_iter().flat_map(|(_, waiting)| waiting));
    for reply in all {
        let _ = reply.send(Err(problem.to_owned()));
    }
    for order in inbox {
        let _ = order.reply.send(Err(problem.to_owned()));
    }
}
