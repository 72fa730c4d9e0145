//! How many CPUs and how much memory a machine has now, and changing that while it runs.
//!
//! A machine starts with the most that it may have. CPUs that it is not to have are taken offline by its guest-init; memory
//! is taken by the balloon. Both need the guest to do its part: what it says is shown and never relied on, and it is not
//! waited for without end. The limit that holds whatever the guest does is what the machine was started with.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::control::{Control, ControlError};
use super::settings::Settings;
use super::state::State;
use crate::engine::EngineError;
use crate::engine::balloon::{self, Balloon};
use crate::guest::GuestDial;
use crate::size::Size;

/// How long the guest may take to change its CPUs. Milliseconds, but for an emulated one on a busy host.
const CPU_LIMIT: Duration = Duration::from_secs(30);
/// When the balloon has not come nearer to what it is to hold for this long, it will not.
const STANDSTILL: Duration = Duration::from_secs(10);
/// What of the memory that it has left the guest keeps, however small it is to be. Linux goes on for ever to fill a balloon
/// that it cannot fill, and throws out of memory all that its programs are about to run.
const RESERVE: Size = Size::from_mib(64);
/// How long the guest may take to tell how much it can spare.
const STATUS_LIMIT: Duration = Duration::from_secs(10);
/// How long a guest that hands over memory bit by bit is waited for.
const MEMORY_LIMIT: Duration = Duration::from_secs(120);

/// How long a change may take altogether, while the machine is not paused.
pub const CHANGE_LIMIT: Duration = CPU_LIMIT
    .saturating_add(STATUS_LIMIT)
    .saturating_add(MEMORY_LIMIT);

/// Why the CPUs or the memory could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    /// There is no guest that could.
    #[error("the machine is not running; it is {0}")]
    NotRunning(State),
    /// The guest did not.
    #[error("the number of CPUs could not be changed")]
    Cpus(#[source] ControlError),
    /// It did not say what it can spare.
    #[error("the memory could not be made less")]
    Spare(#[source] ControlError),
    /// The balloon could not be told.
    #[error("the memory could not be changed")]
    Memory(#[source] EngineError),
}

/// What a machine is to have now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Now {
    /// The profile this is from, unless it was chosen otherwise.
    pub profile: Option<String>,
    /// CPUs online.
    pub cpus: u8,
    /// Memory.
    pub memory: Size,
}

/// The CPUs and the memory of a machine that has a daemon.
pub struct Resources {
    max_cpus: u8,
    max_memory: Size,
    now: Mutex<Now>,
    balloon: Mutex<Option<Arc<dyn Balloon>>>,
    /// Held while they are changed.
    changing: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resources").field("now", &self.now()).finish()
    }
}

impl Resources {
    /// Those of a machine that is started with `settings`.
    pub fn new(settings: &Settings) -> Resources {
        Resources {
            max_cpus: settings.max_cpus,
            max_memory: settings.max_memory,
            now: Mutex::new(Now {
                profile: settings.profile.clone(),
                cpus: settings.cpus,
                memory: settings.memory,
            }),
            balloon: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
        }
    }

    /// What the machine is to have.
    pub fn now(&self) -> Now {
        lock(&self.now).clone()
    }

    /// The memory that it has as far as the guest tells: more than it is to have, while the guest does not give it back.
    pub fn memory(&self) -> Size {
        match lock(&self.balloon).as_ref() {
            Some(balloon) => self.left_by(*balloon.actual().borrow()),
            None => self.now().memory,
        }
    }

    /// What is left of the memory when the guest says that this much is in the balloon.
    fn left_by(&self, pages: u32) -> Size {
        let in_balloon = balloon::size(pages).bytes();
        Size::from_bytes(self.max_memory.bytes().saturating_sub(in_balloon))
    }

    /// How far the memory is from what it is to be, in words; none when it is not, or just being changed.
    pub fn shortfall(&self) -> Option<String> {
        let _nobody_changes_it = self.changing.try_lock().ok()?;
        self.describe_shortfall()
    }

    fn describe_shortfall(&self) -> Option<String> {
        let (has, wanted) = (self.memory(), self.now().memory);
        // Less than a MiB is shown as nothing, and is nothing.
        let off = has.bytes().abs_diff(wanted.bytes()) >= Size::from_mib(1).bytes();
        match has > wanted {
            _ if !off => None,
            true => Some(format!(
                "the machine has {has} of memory and not {wanted}: what runs in it needs that. Switch to the same profile again \
                 when less runs in it"
            )),
            false => Some(format!(
                "the machine has {has} of memory and not {wanted}: its kernel has not taken the rest yet"
            )),
        }
    }

    /// The engine runs. A balloon that is to hold something is told so at once, and fills while the guest boots.
    pub(super) async fn set_balloon(&self, balloon: Arc<dyn Balloon>) -> Result<(), ResourceError> {
        *lock(&self.balloon) = Some(Arc::clone(&balloon));
        match self.to_hold(self.now().memory) {
            0 => Ok(()),
            pages => balloon.set_target(pages).await.map_err(ResourceError::Memory),
        }
    }

    /// How much the balloon is to hold when the machine is to have this much.
    fn to_hold(&self, memory: Size) -> u32 {
        let rest = self.max_memory.bytes().saturating_sub(memory.bytes());
        balloon::pages(Size::from_bytes(rest))
    }

    /// Brings a machine that has just booted, with all that it can ever have, to what it is to have now. Not earlier: dockerd
    /// sets its threads and what it lets containers ask for by what it finds when it starts.
    pub(super) async fn settle(
        &self,
        dial: GuestDial,
        states: watch::Receiver<State>,
    ) -> Result<(), ResourceError> {
        let _one_at_a_time = self.changing.lock().await;
        let now = self.now();
        let control = Control::new(dial);
        if now.cpus != self.max_cpus {
            set_cpus(&control, now.cpus, states.clone()).await?;
        }
        if self.to_hold(now.memory) != 0 {
            self.set_memory(now.memory, &control, states).await?;
        }
        Ok(())
    }

    /// Gives the running machine other CPUs and another memory, none of them more than it can have; how far the memory is
    /// from that, in words. What was done stays when the rest fails.
    ///
    /// # Errors
    /// When the machine does not run, or not any more, or does not do it.
    pub(super) async fn change(
        &self,
        wanted: Now,
        dial: Option<GuestDial>,
        states: watch::Receiver<State>,
    ) -> Result<Option<String>, ResourceError> {
        let _one_at_a_time = self.changing.lock().await;
        let state = states.borrow().clone();
        let dial = dial
            .filter(|_| state == State::Running)
            .ok_or(ResourceError::NotRunning(state))?;
        let control = Control::new(dial);
        let cpus = wanted.cpus.clamp(1, self.max_cpus);
        let memory = wanted.memory.min(self.max_memory);
        // More memory comes first: a guest that has too little may not be able to do anything else.
        let is_more = memory > self.memory();
        if is_more {
            self.set_memory(memory, &control, states.clone()).await?;
            lock(&self.now).memory = memory;
        }
        // Also when it is to have that number already: what somebody changed in the guest is put right.
        if self.max_cpus > 1 {
            set_cpus(&control, cpus, states.clone()).await?;
        }
        {
            let mut now = lock(&self.now);
            now.cpus = cpus;
            now.memory = memory;
            now.profile = wanted.profile;
        }
        if !is_more {
            self.set_memory(memory, &control, states).await?;
        }
        Ok(self.describe_shortfall())
    }

    /// Takes memory from the guest, as far as it can spare it, or gives it back.
    async fn set_memory(
        &self,
        memory: Size,
        control: &Control,
        states: watch::Receiver<State>,
    ) -> Result<(), ResourceError> {
        let Some(balloon) = lock(&self.balloon).clone() else {
            return Ok(());
        };
        let wanted = self.to_hold(memory);
        // Before the target, so that nothing is missed.
        let actual = balloon.actual();
        let holds = (*actual.borrow()).min(balloon::pages(self.max_memory));
        let target = if wanted > holds {
            wanted.min(holds.saturating_add(spare(control, states.clone()).await?))
        } else {
            wanted
        };
        balloon.set_target(target).await.map_err(ResourceError::Memory)?;
        arrival(target, actual.clone(), states).await?;
        // It needs more than it thought. What it has handed over stays, but for what it needs to live.
        let holds = (*actual.borrow()).min(balloon::pages(self.max_memory));
        if holds < target {
            let target = holds.saturating_sub(balloon::pages(RESERVE));
            balloon.set_target(target).await.map_err(ResourceError::Memory)?;
        }
        Ok(())
    }
}

/// How many pages the guest can hand over and go on as before. Its word, which can only leave it with more.
async fn spare(control: &Control, mut states: watch::Receiver<State>) -> Result<u32, ResourceError> {
    loop {
        unpaused(&mut states).await?;
        tokio::select! {
            status = control.status(STATUS_LIMIT) => {
                let available = status.map_err(ResourceError::Spare)?.memory.available;
                let spare = available.saturating_sub(RESERVE.bytes());
                return Ok(balloon::pages(Size::from_bytes(spare)));
            }
            () = disturbed(&mut states) => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is a plain assignment, so a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits while the machine is paused.
async fn unpaused(states: &mut watch::Receiver<State>) -> Result<(), ResourceError> {
    match states.wait_for(|state| *state != State::Paused).await.as_deref() {
        Ok(State::Running | State::Starting { .. }) => Ok(()),
        Ok(state) => Err(ResourceError::NotRunning(state.clone())),
        Err(_) => Err(ResourceError::NotRunning(State::Stopped)),
    }
}

/// Waits until the machine is paused, or about to end.
async fn disturbed(states: &mut watch::Receiver<State>) {
    let undisturbed = |state: &State| matches!(state, State::Running | State::Starting { .. });
    // A sender that is gone is an end too.
    let _ = states.wait_for(|state| !undisturbed(state)).await;
}

/// Has the guest use this many CPUs. A guest that is paused meanwhile is asked once more when it goes on.
async fn set_cpus(
    control: &Control,
    cpus: u8,
    mut states: watch::Receiver<State>,
) -> Result<(), ResourceError> {
    loop {
        unpaused(&mut states).await?;
        tokio::select! {
            result = control.set_cpus(cpus.into(), CPU_LIMIT) => return result.map_err(ResourceError::Cpus),
            () = disturbed(&mut states) => {}
        }
    }
}

/// Waits until the balloon holds `target` pages, or does not come nearer to it any more.
async fn arrival(
    target: u32,
    mut actual: watch::Receiver<u32>,
    mut states: watch::Receiver<State>,
) -> Result<(), ResourceError> {
    let mut limit = MEMORY_LIMIT;
    loop {
        unpaused(&mut states).await?;
        let since = Instant::now();
        tokio::select! {
            () = approach(target, &mut actual, limit) => return Ok(()),
            () = disturbed(&mut states) => {}
        }
        // The time in a pause is nobody's.
        limit = limit.saturating_sub(since.elapsed());
    }
}

async fn approach(target: u32, actual: &mut watch::Receiver<u32>, limit: Duration) {
    let end = Instant::now() + limit;
    let mut nearest = u32::MAX;
    let mut stands_still = Instant::now() + STANDSTILL;
    loop {
        let distance = actual.borrow_and_update().abs_diff(target);
        if distance == 0 {
            return;
        }
        if distance < nearest {
            nearest = distance;
            stands_still = Instant::now() + STANDSTILL;
        }
        match tokio::time::timeout_at(stands_still.min(end), actual.changed()).await {
            Ok(Ok(())) => {}
            // It is too slow, or there is no machine any more.
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use protocol::control::{DockerState, DockerStatus, GuestStatus, MemoryStatus, Reply, Request};
    use protocol::{frame, ports};

    use super::*;
    use crate::config::Config;
    use crate::host::Host;
    use crate::machine::settings::Chosen;

    /// A balloon whose guest hands over at most so much.
    struct FakeBalloon {
        most: u32,
        actual: watch::Sender<u32>,
    }

    impl Balloon for FakeBalloon {
        fn set_target(&self, pages: u32) -> BoxFuture<'_, Result<(), EngineError>> {
            self.actual.send_replace(pages.min(self.most));
            std::future::ready(Ok(())).boxed()
        }

        fn actual(&self) -> watch::Receiver<u32> {
            self.actual.subscribe()
        }
    }

    fn resources(max_cpus: u8) -> Resources {
        let text = format!("cpus: 1\nmemory: 512MiB\nmax_cpus: {max_cpus}\nmax_memory: 1GiB\n");
        let config = Config::parse(&text, std::path::Path::new("c")).unwrap();
        let host = Host {
            cpus: 4,
            memory: Size::from_gib(8),
        };
        Resources::new(&Settings::resolve(&Chosen::default(), &config, &host).unwrap())
    }

    async fn with_balloon(resources: &Resources, most: Size) -> Arc<FakeBalloon> {
        let balloon = Arc::new(FakeBalloon {
            most: balloon::pages(most),
            actual: watch::Sender::new(0),
        });
        resources
            .set_balloon(Arc::clone(&balloon) as Arc<dyn Balloon>)
            .await
            .unwrap();
        balloon
    }

    /// A guest that writes down how many CPUs it is asked for, and answers that when it is let; it says that it can spare all
    /// of `available` MiB.
    fn guest(asked: Arc<Mutex<Vec<u32>>>, answers: watch::Receiver<bool>, available: u64) -> GuestDial {
        GuestDial::new(move |port| {
            let (asked, mut answers) = (Arc::clone(&asked), answers.clone());
            async move {
                assert_eq!(port, ports::CONTROL);
                let (host, guest) = std::os::unix::net::UnixStream::pair()?;
                guest.set_nonblocking(true)?;
                let mut guest = tokio::net::UnixStream::from_std(guest)?;
                tokio::spawn(async move {
                    let reply = match frame::read_async(&mut guest).await {
                        Ok(Request::SetCpus { online }) => {
                            lock(&asked).push(online);
                            answers.wait_for(|answers| *answers).await.unwrap();
                            Reply::Done
                        }
                        Ok(Request::Status) => Reply::Status(Box::new(status(available))),
                        other => panic!("another request: {other:?}"),
                    };
                    // Whoever asked may have given up.
                    let _ = frame::write_async(&mut guest, &reply).await;
                });
                Ok(host)
            }
            .boxed()
        })
    }

    fn status(available: u64) -> GuestStatus {
        GuestStatus {
            kernel: String::new(),
            uptime_ms: 1,
            cpus: 1,
            load: [0.0; 3],
            memory: MemoryStatus {
                total: 1 << 30,
                available: available << 20,
                free: 0,
                cached: 0,
            },
            data_disk: None,
            docker: DockerStatus {
                state: DockerState::Ready,
                version: None,
                pid: None,
                restarts: 0,
            },
            unix_time_ns: 1,
        }
    }

    fn wanted(cpus: u8, memory: Size) -> Now {
        Now {
            profile: Some("p".into()),
            cpus,
            memory,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_done_when_the_guest_has_done_it() {
        let resources = resources(4);
        with_balloon(&resources, Size::from_gib(1)).await;
        assert_eq!(resources.memory(), Size::from_mib(512), "told at the start");
        let asked = Arc::default();
        let (_answer, answers) = watch::channel(true);
        let (_state, states) = watch::channel(State::Running);
        let dial = guest(Arc::clone(&asked), answers, 900);
        let change = |now| resources.change(now, Some(dial.clone()), states.clone());
        assert_eq!(change(wanted(3, Size::from_mib(768))).await.unwrap(), None);
        assert_eq!(resources.memory(), Size::from_mib(768));
        assert_eq!(resources.now(), wanted(3, Size::from_mib(768)));
        // Never more than it was started with.
        assert_eq!(change(wanted(9, Size::from_gib(9))).await.unwrap(), None);
        assert_eq!(resources.now(), wanted(4, Size::from_gib(1)));
        assert_eq!(*lock(&asked), [3, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_cannot_give_so_much_is_not_waited_for_and_told_of() {
        let resources = resources(1);
        let balloon = with_balloon(&resources, Size::from_mib(100)).await;
        let (_state, states) = watch::channel(State::Running);
        let (_answer, answers) = watch::channel(true);
        let dial = guest(Arc::default(), answers, 900);
        let since = Instant::now();
        let told = resources
            .change(wanted(1, Size::from_mib(256)), Some(dial), states)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(since.elapsed(), STANDSTILL);
        // It is left some room, or it would go on trying.
        assert!(told.contains("has 988 MiB of memory and not 256 MiB"), "{told}");
        assert_eq!(resources.shortfall(), Some(told));
        // What nobody can have handed over is everything, and no more.
        balloon.actual.send_replace(u32::MAX);
        assert_eq!(resources.memory(), Size::from_bytes(0));
        balloon.actual.send_replace(balloon::pages(Size::from_mib(768)));
        assert_eq!(resources.shortfall(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_taken_than_the_guest_can_spare() {
        let resources = resources(1);
        with_balloon(&resources, Size::from_gib(1)).await;
        let (_state, states) = watch::channel(State::Running);
        let (_answer, answers) = watch::channel(true);
        let since = Instant::now();
        let change = |memory, available| {
            let dial = guest(Arc::default(), answers.clone(), available);
            resources.change(wanted(1, memory), Some(dial), states.clone())
        };
        let told = change(Size::from_mib(256), 164).await.unwrap().unwrap();
        assert!(told.contains("has 412 MiB of memory and not 256 MiB"), "{told}");
        assert_eq!(since.elapsed(), Duration::ZERO, "nothing is waited for");
        // It has less than it needs, as it says, and gets no less.
        assert!(change(Size::from_mib(256), 3).await.unwrap().is_some());
        assert_eq!(resources.memory(), Size::from_mib(412));
        assert_eq!(change(Size::from_mib(256), u64::MAX >> 20).await.unwrap(), None);
        // More is given without a question.
        assert_eq!(change(Size::from_mib(999), 0).await.unwrap(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_gives_a_little_again_and_again_is_not_waited_for_for_ever() {
        let (sender, actual) = watch::channel(0);
        let (_state, states) = watch::channel(State::Running);
        let since = Instant::now();
        let feeding = tokio::spawn(async move {
            for pages in 1.. {
                tokio::time::sleep(STANDSTILL / 2).await;
                // Back and forth is no way there.
                sender.send_replace(pages);
            }
        });
        arrival(1_000_000, actual, states).await.unwrap();
        assert_eq!(since.elapsed(), MEMORY_LIMIT);
        feeding.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_waited_out_and_the_end_of_the_machine_ends_the_waiting() {
        let (actual, heard) = watch::channel(0);
        let (state, states) = watch::channel(State::Paused);
        let waiting = tokio::spawn(arrival(7, heard, states));
        tokio::time::sleep(10 * MEMORY_LIMIT).await;
        assert!(!waiting.is_finished());
        state.send_replace(State::Running);
        actual.send_replace(7);
        waiting.await.unwrap().unwrap();

        let (_actual, heard) = watch::channel(0);
        let waiting = tokio::spawn(arrival(7, heard, state.subscribe()));
        tokio::task::yield_now().await;
        state.send_replace(State::Stopping);
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the machine is not running; it is stopping");
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_is_paused_before_it_answers_is_asked_once_more() {
        let asked: Arc<Mutex<Vec<u32>>> = Arc::default();
        let (answer, answers) = watch::channel(false);
        let (state, states) = watch::channel(State::Running);
        let control = Control::new(guest(Arc::clone(&asked), answers, 900));
        let waiting = tokio::spawn(async move { set_cpus(&control, 2, states).await });
        while lock(&asked).is_empty() {
            tokio::task::yield_now().await;
        }
        state.send_replace(State::Paused);
        tokio::time::sleep(10 * CPU_LIMIT).await;
        assert!(!waiting.is_finished());
        answer.send_replace(true);
        state.send_replace(State::Running);
        waiting.await.unwrap().unwrap();
        assert_eq!(*lock(&asked), [2, 2]);
    }

    #[tokio::test]
    async fn a_machine_that_does_not_run_is_not_changed() {
        let resources = resources(4);
        for state in [State::Paused, State::Stopping] {
            let (_sender, states) = watch::channel(state);
            let error = resources
                .change(wanted(2, Size::from_gib(1)), None, states)
                .await
                .unwrap_err();
            assert!(matches!(error, ResourceError::NotRunning(_)), "{error}");
        }
        assert_eq!(resources.now().cpus, 1);
    }
}
