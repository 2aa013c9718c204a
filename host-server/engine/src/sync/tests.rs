use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::{Either, Event, Mutex, Notify, RwLock, Semaphore, join_all, oneshot, race};
use crate::engine::Engine;
use crate::sim::SimWorld;

type Trace = Rc<RefCell<Vec<u32>>>;

fn run<F: Future>(test: impl FnOnce(Rc<dyn Engine>) -> F) -> F::Output {
    let world = SimWorld::new(1);
    let engine = world.engine();
    world.run(test(engine)).done()
}

#[test]
fn mutex_excludes_and_is_granted_in_order() {
    run(|engine| async move {
        let mutex = Rc::new(Mutex::new(Vec::new()));
        let tasks = (0..5).map(|index| {
            let (mutex, engine) = (Rc::clone(&mutex), Rc::clone(&engine));
            async move {
                let mut guard = mutex.lock().await;
                guard.push(index);
                engine.sleep(Duration::from_millis(10 - index)).await;
                guard.push(index);
            }
        });
        join_all(tasks).await;
        assert_eq!(*mutex.lock().await, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]);
        assert!(mutex.try_lock().is_some());
        let held = mutex.lock().await;
        // Failing must not give anything back.
        assert!(mutex.try_lock().is_none());
        assert!(mutex.try_lock().is_none());
        drop(held);
        assert!(mutex.try_lock().is_some());
    });
}

#[test]
fn a_waiting_writer_holds_back_later_readers() {
    run(|engine| async move {
        let lock = Rc::new(RwLock::new(()));
        let trace = Trace::default();
        let first = lock.read().await;
        let (lock2, trace2) = (Rc::clone(&lock), Rc::clone(&trace));
        engine.spawn(Box::pin(async move {
            let _guard = lock2.write().await;
            trace2.borrow_mut().push(1);
        }));
        for _ in 0..2 {
            let (lock2, trace2) = (Rc::clone(&lock), Rc::clone(&trace));
            engine.spawn(Box::pin(async move {
                let _guard = lock2.read().await;
                trace2.borrow_mut().push(2);
            }));
        }
        engine.yield_now().await;
        assert!(lock.try_read().is_none() && trace.borrow().is_empty());
        drop(first);
        engine.sleep(Duration::from_millis(1)).await;
        assert_eq!(*trace.borrow(), [1, 2, 2]);
    });
}

#[test]
fn an_abandoned_acquisition_passes_its_turn_on() {
    run(|engine| async move {
        let semaphore = Rc::new(Semaphore::new(2));
        let held = semaphore.acquire(1).await;
        let large = Rc::clone(&semaphore).acquire_owned(2);
        let timed_out = race(large, engine.sleep(Duration::from_millis(1)));
        let trace = Trace::default();
        let (semaphore2, trace2, engine2) = (Rc::clone(&semaphore), Rc::clone(&trace), Rc::clone(&engine));
        engine.spawn(Box::pin(async move {
            engine2.yield_now().await;
            // Room for this one, but the large request stands in front.
            let _permit = semaphore2.acquire(1).await;
            trace2.borrow_mut().push(1);
        }));
        assert!(matches!(timed_out.await, Either::Second(())));
        engine.yield_now().await;
        assert_eq!(*trace.borrow(), [1]);
        drop(held);
        assert_eq!(semaphore.available(), 2);
    });
}

#[test]
fn a_granted_permit_that_is_never_taken_goes_back() {
    run(|engine| async move {
        let semaphore = Semaphore::new(1);
        let held = semaphore.acquire(1).await;
        let mut waiting = Box::pin(semaphore.acquire(1));
        assert!(matches!(race(&mut waiting, engine.yield_now()).await, Either::Second(())));
        drop(held);
        assert_eq!(semaphore.available(), 0);
        drop(waiting);
        assert_eq!(semaphore.available(), 1);
    });
}

#[test]
fn notify_keeps_one_notification_and_wakes_in_order() {
    run(|engine| async move {
        let notify = Rc::new(Notify::new());
        notify.notify_one();
        notify.notify_one();
        notify.notified().await;
        assert!(matches!(race(notify.notified(), engine.yield_now()).await, Either::Second(())));
        let trace = Trace::default();
        for index in 0..3 {
            let (notify2, trace2) = (Rc::clone(&notify), Rc::clone(&trace));
            engine.spawn(Box::pin(async move {
                notify2.notified().await;
                trace2.borrow_mut().push(index);
            }));
        }
        engine.yield_now().await;
        notify.notify_one();
        engine.yield_now().await;
        assert_eq!(*trace.borrow(), [0]);
        notify.notify_all();
        engine.yield_now().await;
        assert_eq!(*trace.borrow(), [0, 1, 2]);
    });
}

#[test]
fn a_notification_given_to_a_dropped_waiter_reaches_the_next() {
    run(|_| async move {
        let notify = Notify::new();
        let first = notify.notified();
        let second = notify.notified();
        notify.notify_one();
        drop(first);
        second.await;
    });
}

#[test]
fn event_releases_everybody_and_stays_set() {
    run(|engine| async move {
        let event = Rc::new(Event::new());
        let event2 = Rc::clone(&event);
        engine.spawn(Box::pin(async move { event2.set() }));
        join_all((0..3).map(|_| event.wait())).await;
        event.wait().await;
        assert!(event.is_set());
    });
}

#[test]
fn oneshot_delivers_or_tells_that_the_sender_is_gone() {
    run(|engine| async move {
        let (sender, receiver) = oneshot::channel();
        engine.spawn(Box::pin(async move { sender.send(5) }));
        assert_eq!(receiver.await, Some(5));
        let (sender, receiver) = oneshot::channel::<u32>();
        drop(sender);
        assert_eq!(receiver.await, None);
    });
}

#[test]
fn join_all_keeps_the_order_of_its_arguments() {
    run(|engine| async move {
        let sleeps = [30u64, 10, 20].map(|ms| {
            let engine = Rc::clone(&engine);
            async move {
                engine.sleep(Duration::from_millis(ms)).await;
                ms
            }
        });
        assert_eq!(join_all(sleeps).await, [30, 10, 20]);
        assert_eq!(engine.monotonic(), Duration::from_millis(30));
    });
}
