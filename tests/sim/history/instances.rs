//! The instances of outjet, and their links.

use std::net::SocketAddr;
use std::time::Duration;

use outjet::watch::vitals::State;

use super::World;
use crate::instance::Instance;
use crate::scene::{NATS, POSTGRES, weather};

/// What is said of a slot that is not there, or cannot be read any more.
const GONE: [&str; 4] = [
    "is missing",
    "does not exist",
    "is lost",
    "can no longer get changes",
];

impl World {
    pub(super) fn start(&mut self) {
        if self.instances.len() < 3 {
            self.say(&format!("outjet {} starts", self.seats));
            let config = self.scene.config(&mut self.random);
            let instance = Instance::start(&self.net, self.seats, &config);
            self.instances.push(instance);
            self.seats += 1;
        }
    }

    pub(super) fn kill(&mut self) {
        self.end("killed", Instance::kill);
    }

    pub(super) fn stop(&mut self) {
        self.end("stopped", Instance::stop);
    }

    fn end(&mut self, how: &str, end: impl FnOnce(&Instance)) {
        if self.instances.is_empty() {
            return;
        }
        let chosen = self.random.index(self.instances.len());
        let instance = self.instances.swap_remove(chosen);
        self.say(&format!("outjet {} is {how}", instance.seat));
        end(&instance);
        self.past.push(instance);
    }

    pub(super) fn change_weather(&mut self) {
        let weather = weather(&mut self.random);
        self.say(&format!("{weather:?}"));
        self.net.set_weather(weather);
    }

    pub(super) fn cut(&mut self) {
        let (seat, to) = self.some_links();
        let mut after = || match self.random.below(3) {
            0 => 0,
            1 => self.random.below(200),
            _ => self.random.below(20_000),
        };
        let after = [after(), after()];
        let links = self.net.cut(seat, to, after);
        self.say(&format!(
            "{links} links of {seat:?} to {to:?} are cut after {after:?} bytes"
        ));
    }

    pub(super) fn stall(&mut self) {
        let (seat, to) = self.some_links();
        let time = Duration::from_millis(self.random.of_any_size(15));
        let links = self.net.stall(seat, to, time);
        self.say(&format!(
            "{links} links of {seat:?} to {to:?} stall for {time:?}"
        ));
    }

    fn some_links(&mut self) -> (Option<usize>, Option<SocketAddr>) {
        let seats: Vec<usize> = self
            .instances
            .iter()
            .map(|instance| instance.seat)
            .collect();
        let seat = (!seats.is_empty() && !self.random.once_in(3)).then(|| *self.random.of(&seats));
        let to = *self
            .random
            .of(&[None, Some(POSTGRES), Some(NATS), Some(NATS)]);
        (seat, to)
    }

    fn halted(&self) -> Option<&Instance> {
        let mut instances = self.instances.iter();
        instances.find(|instance| instance.state() == State::Halted)
    }

    /// It needs a person, and says so.
    pub(super) fn rightly_halted(&self) -> bool {
        let says = |it: &Instance, words: &[&str]| {
            let problem = it.problem();
            words.iter().any(|words| problem.contains(words))
        };
        let moved = |it| self.moved && says(it, &["was moved", "nothing shows that slot"]);
        let gone = |it| self.slot().is_none() && says(it, &GONE);
        self.halted().is_some_and(|it| moved(it) || gone(it))
    }

    pub(super) fn gap(&self) -> bool {
        self.instances.iter().chain(&self.past).any(Instance::gap)
    }

    /// How many events may be there twice.
    pub(super) fn uncertain(&self) -> u64 {
        // In a shared stream, what has vanished may come again.
        if self.blind || (self.scene.shared && (self.vanished || self.scene.expires)) {
            return u64::MAX;
        }
        let all = self.instances.iter().chain(&self.past);
        all.map(Instance::uncertain).sum()
    }
}
