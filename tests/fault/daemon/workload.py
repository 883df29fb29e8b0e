"""Somebody at work on a volume: seeded, by real system calls, every state of every path written down."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import stat
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, Self

from tests.fault.daemon.model import FOREVER, Inode, Model, Moment
from tests.fault.daemon.seen import EMPTY, PAGE, Content, content_of, see, see_below, see_open

_RMDIR: Final = os.O_RDONLY | os.O_DIRECTORY
_LARGE: Final = 9 * 1024 * 1024


class Workload:
    """Changes what lies below `root`; things come from and go to `beside`, on the same file system."""

    def __init__(self, root: bytes, beside: bytes, seed: int, most_paths: int = 400) -> None:
        """About `most_paths` are there at a time."""
        self.most_paths = most_paths
        self.model = Model()
        self.operations = 0
        self._root, self._beside = root, beside
        self._chance = random.Random(seed)
        self._held: list[tuple[int, Inode]] = []
        self._mapped: list[tuple[int, mmap.mmap, Inode]] = []
        self._count = 0
        os.makedirs(beside, exist_ok=True)
        self._adopt(b"", 0, time.time_ns())

    def close(self) -> None:
        """Let go of what is held open; changes nothing."""
        for descriptor, _ in self._held:
            os.close(descriptor)
        self._held.clear()
        while self._mapped:
            self._unmap()

    # --- the steps

    def step(self) -> None:
        """One thing that somebody does."""
        chance = self._chance
        if len(self.model.now) > self.most_paths:
            self._clear_out()
            return
        names = list(_STEPS)
        getattr(self, "_" + chance.choices(names, [_STEPS[name] for name in names])[0])()

    def storm(self, steps: int) -> None:
        """Creates, renames and deletes, as many as these, with nothing between them.

        No name is used twice, so that no two events are alike: the kernel would make one of them.
        """
        chance = self._chance
        places = [self._a_directory() for _ in range(20)]
        there: list[bytes] = []
        for _ in range(steps):
            what = chance.random()
            self._count += 1
            new = os.path.join(chance.choice(places), b"s%d" % self._count)
            if what < 0.4 or not there:
                self._create(new, b"%d" % self._count)
                there.append(new)
                continue
            place = chance.randrange(len(there))
            there[place], there[-1] = there[-1], there[place]
            if what < 0.7:
                self._move(there[-1], new)
                there[-1] = new
            else:
                self._remove(there.pop())

    def fill(self, directories: int) -> None:
        """A tree to begin with."""
        for _ in range(directories):
            path = self._new_name(self._a_directory())
            self._make_directory(path)
            for _ in range(self._chance.randrange(4)):
                self._create(self._new_name(path), self._some(3000))

    # --- files

    def _write_new(self) -> None:
        path = self._new_name(self._a_directory())
        self._create(path, self._some())

    def _rewrite(self) -> None:
        """As `open(path, "w")` does: first it is empty, then it grows piece by piece."""
        if path := self._a_file(to_shrink=True):
            with self._changing(path) as between, open(self._at(path), "r+b", buffering=0) as file:
                file.truncate(0)
                between.append(EMPTY)
                data = b""
                for _ in range(self._chance.randrange(4)):
                    data += self._some(5000)
                    file.write(data[file.tell() :])
                    between.append(content_of(data))

    def _replace(self) -> None:
        """As careful programs do: another file, renamed over this one."""
        if path := self._a_file():
            temporary = self._new_name(os.path.dirname(path))
            self._create(temporary, self._some())
            self._move(temporary, path)

    def _append(self) -> None:
        if path := self._a_file():
            with self._changing(path), open(self._at(path), "ab") as file:
                file.write(self._some(3000))

    def _overwrite(self) -> None:
        """In place, same size; some programs put the old time back."""
        path = self._a_file()
        if not path or not (size := self.model.now[path].now.content[0]):
            return
        place = self._chance.randrange(size)
        data = self._chance.randbytes(min(size - place, PAGE - place % PAGE, 500))
        before = self.model.now[path].now.mtime_ns
        with self._changing(path), open(self._at(path), "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), data, place)
        if self._chance.random() < 0.3:
            with self._changing(path):
                os.utime(self._at(path), ns=(before, before))

    def _burst(self) -> None:
        """Several writes of one page, one right behind the other: within a tick of a coarse clock."""
        path = self._a_file()
        if not path or self.model.now[path].now.content[0] < PAGE:
            return
        with self._changing(path) as between, open(self._at(path), "r+b", buffering=0) as file:
            rest = self.model.now[path].now.content
            for _ in range(self._chance.randrange(2, 6)):
                data = self._chance.randbytes(PAGE)
                os.pwrite(file.fileno(), data, 0)
                between.append((rest[0], (*content_of(data)[1], *rest[1][1:])))

    def _truncate(self) -> None:
        if path := self._a_file(to_shrink=True):
            with self._changing(path):
                os.truncate(self._at(path), self._chance.randrange(20_000))

    def _sparse(self) -> None:
        path = self._new_name(self._a_directory())
        self._create(path, b"")
        with self._changing(path):
            os.truncate(self._at(path), self._chance.randrange(1, 60) * PAGE)
        with open(self._at(path), "r+b", buffering=0) as file:
            for _ in range(3):
                with self._changing(path):
                    os.pwrite(file.fileno(), self._chance.randbytes(900), self._chance.randrange(59) * PAGE)

    def _large(self) -> None:
        """A file that is stored in pieces, changed in the middle."""
        path = b"large%d" % self._chance.randrange(2)
        if path not in self.model.now:
            self._create(path, bytes(PAGE) * (_LARGE // PAGE))
        if not stat.S_ISREG(self.model.now[path].now.kind):
            return
        with open(self._at(path), "r+b", buffering=0) as file:
            for _ in range(2):
                with self._changing(path):
                    place = self._chance.randrange(_LARGE // PAGE) * PAGE
                    os.pwrite(file.fileno(), self._chance.randbytes(PAGE), place)

    def _chmod(self) -> None:
        path = self._chance.choice([path for path in self.model.now if path])
        if not stat.S_ISLNK(self.model.now[path].now.kind):
            with self._changing(path):
                os.chmod(self._at(path), self._chance.choice((0o700, 0o750, 0o755, 0o644)))

    def _setxattr(self) -> None:
        if path := self._a_file():
            with self._changing(path):
                os.setxattr(self._at(path), "user.note", self._chance.randbytes(5))

    # --- files that stay open

    def _hold(self) -> None:
        """A log: opened once, appended to now and then, never closed."""
        if len(self._held) < 4:
            path = self._new_name(self._a_directory())
            self._create(path, b"log\n")
            descriptor = os.open(self._at(path), os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            self._held.append((descriptor, self.model.now[path]))
        self._append_to_held()

    def _append_to_held(self) -> None:
        for descriptor, inode in self._held:
            begin_ns = time.time_ns()
            os.write(descriptor, self._chance.randbytes(30))
            seen = see_open(descriptor)
            inode.note(Moment(begin_ns, time.time_ns(), seen, told_ns=FOREVER * inode.had_names))

    def _map(self) -> None:
        """A shared mapping, stored to now and then; the kernel tells nothing before it is gone."""
        if len(self._mapped) >= 3:
            self._unmap()
            return
        path = self._new_name(self._a_directory())
        self._create(path, self._chance.randbytes(3 * PAGE))
        descriptor = os.open(self._at(path), os.O_RDWR | os.O_CLOEXEC)
        self._mapped.append((descriptor, mmap.mmap(descriptor, 3 * PAGE), self.model.now[path]))

    def _store_to_mapped(self) -> None:
        for descriptor, mapping, inode in self._mapped:
            begin_ns, place = time.time_ns(), self._chance.randrange(3) * PAGE
            mapping[place : place + 200] = self._chance.randbytes(200)
            seen = see_open(descriptor)
            inode.note(Moment(begin_ns, time.time_ns(), seen, told_ns=FOREVER))

    def _unmap(self) -> None:
        if self._mapped:
            descriptor, mapping, inode = self._mapped.pop(0)
            mapping.close()
            os.close(descriptor)
            inode.told(time.time_ns())

    # --- names

    def _rename(self) -> None:
        if path := self._a_file():
            self._move(path, self._new_name(self._a_directory()))

    def _rename_directory(self) -> None:
        path, above = self._a_directory(), self._a_directory()
        if path and not (above + b"/").startswith(path + b"/"):
            empty = [other for other in self._directories() if len(self.model.below(other)) == 1]
            to = self._new_name(above)
            if empty and self._chance.random() < 0.2:
                to = self._chance.choice(empty)
            if to != path and not (to + b"/").startswith(path + b"/"):
                self._move(path, to)

    def _swap(self) -> None:
        """Two directories change places, by way of a third name, with nothing between the renames."""
        first, second = self._a_directory(), self._a_directory()
        if not first or not second or (first + b"/").startswith(second + b"/"):
            return
        if not (second + b"/").startswith(first + b"/"):
            third = self._new_name(b"")
            self._move(first, third)
            self._move(second, first)
            self._move(third, second)

    def _link(self) -> None:
        if path := self._a_file():
            self._make_link(path, self._new_name(self._a_directory()))

    def _symlink(self) -> None:
        path = self._new_name(self._a_directory())
        with self._making(path):
            os.symlink(b"to/%d" % self._chance.randrange(1000), self._at(path))

    def _unlink(self) -> None:
        if path := self._a_file():
            self._remove(path)

    def _remove_tree(self) -> None:
        path = self._a_directory()
        if path and len(self.model.below(path)) < self.most_paths // 8:
            self._remove(path)

    def _clear_out(self) -> None:
        """There is too much: of what lies in the root, half goes, directories first."""
        in_root = [path for path in self.model.now if path and b"/" not in path]
        in_root.sort(key=lambda path: not stat.S_ISDIR(self.model.now[path].now.kind))
        for path in in_root:
            if len(self.model.now) > self.most_paths // 2:
                self._remove(path)

    def _make_tree(self) -> None:
        """`mkdir -p` and files in it at once."""
        path = self._new_name(self._a_directory())
        self._make_directory(path)
        for _ in range(self._chance.randrange(1, 4)):
            path = self._new_name(path)
            self._make_directory(path)
            for _ in range(self._chance.randrange(3)):
                self._create(self._new_name(path), self._some(2000))

    def _change_kind(self) -> None:
        """The name of a file becomes a directory's, or the other way round."""
        path = self._a_file()
        if path:
            self._remove(path)
            self._make_directory(path)
            self._create(self._new_name(path), self._some(100))
            return
        self._remove_tree()

    def _remake(self) -> None:
        """A directory is removed, and made again at once: it may well get the same inode number."""
        path = self._a_directory()
        if path and len(self.model.below(path)) < self.most_paths // 8:
            self._remove(path)
            self._make_directory(path)
            self._create(self._new_name(path), self._some(100))

    def _move_in(self) -> None:
        self._count += 1
        outside = os.path.join(self._beside, b"in%d" % self._count)
        os.makedirs(os.path.join(outside, b"deep", b"er"))
        for name in (b"a", b"deep/b", b"deep/er/c"):
            with open(os.path.join(outside, name), "wb") as file:
                file.write(self._some(3000))
        path = self._new_name(self._a_directory())
        begin_ns = time.time_ns()
        os.rename(outside, self._at(path))
        done_ns = time.time_ns()
        self._adopt(path, begin_ns, done_ns)
        self._look_again(begin_ns, os.path.dirname(path))

    def _move_out(self) -> None:
        path = self._a_directory()
        if not path or len(self.model.below(path)) > self.most_paths // 8:
            return
        self._count += 1
        begin_ns = time.time_ns()
        os.rename(self._at(path), os.path.join(self._beside, b"out%d" % self._count))
        done_ns = time.time_ns()
        for other in self.model.below(path):
            self.model.replace(other, None, begin_ns, done_ns)
        self._look_again(begin_ns, os.path.dirname(path))

    # --- what the steps are made of

    def _create(self, path: bytes, data: bytes) -> None:
        with self._making(path) as between:
            descriptor = os.open(self._at(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            between.append(EMPTY)
            os.write(descriptor, data)
            os.close(descriptor)

    def _make_directory(self, path: bytes) -> None:
        with self._making(path):
            os.mkdir(self._at(path))

    def _make_link(self, path: bytes, to: bytes) -> None:
        begin_ns = time.time_ns()
        os.link(self._at(path), self._at(to))
        self.model.bind(to, self.model.now[path], begin_ns, time.time_ns())
        self._look_again(begin_ns, os.path.dirname(to))

    def _move(self, path: bytes, to: bytes) -> None:
        """rename(2): everything below gets another path at the same moment."""
        if self.model.now.get(to) is self.model.now[path]:
            return  # two names of one file: rename does nothing
        moved = [(other, self.model.now[other]) for other in self.model.below(path)]
        begin_ns = time.time_ns()
        os.rename(self._at(path), self._at(to))
        done_ns = time.time_ns()
        for other, _ in moved:
            self.model.bind(other, None, begin_ns, done_ns)
        for other, inode in moved:
            self.model.replace(to + other[len(path) :], inode, begin_ns, done_ns)
        self._look_again(begin_ns, os.path.dirname(path), os.path.dirname(to), to)

    def _remove(self, path: bytes) -> None:
        """As `rm -r`: one name after the other, those below first."""
        for other in sorted(self.model.below(path), reverse=True):
            begin_ns = time.time_ns()
            is_directory = stat.S_ISDIR(self.model.now[other].now.kind)
            (os.rmdir if is_directory else os.unlink)(self._at(other))
            self.model.replace(other, None, begin_ns, time.time_ns())
            self._look_again(begin_ns, os.path.dirname(other))

    @contextlib.contextmanager
    def _making(self, path: bytes) -> Iterator[list[Content]]:
        """Around the calls that make a new path."""
        between: list[Content] = []
        begin_ns = time.time_ns()
        yield between
        seen, inode = see(self._at(path)), Inode()
        done_ns = time.time_ns()
        inode.note(Moment(begin_ns, done_ns, seen, tuple(between)))
        self.model.bind(path, inode, begin_ns, done_ns)
        self._look_again(begin_ns, os.path.dirname(path))

    @contextlib.contextmanager
    def _changing(self, path: bytes) -> Iterator[list[Content]]:
        """Around the calls that change what is there."""
        between: list[Content] = []
        begin_ns = time.time_ns()
        yield between
        seen = see(self._at(path))
        self.model.now[path].note(Moment(begin_ns, time.time_ns(), seen, tuple(between)))
        self.operations += 1

    def _look_again(self, begin_ns: int, *paths: bytes) -> None:
        """Other inodes that the operation may have changed: those of directories, above all."""
        self.operations += 1
        for path in paths:
            if stat.S_ISDIR(self.model.now[path].now.kind):
                seen = see(self._at(path))
                self.model.now[path].note(Moment(begin_ns, time.time_ns(), seen))

    def _adopt(self, path: bytes, begin_ns: int, done_ns: int) -> None:
        """Take in what has come to be there by one operation."""
        seen, numbers = see_below(self._at(path))
        inodes: dict[int, Inode] = {}
        for below, look in seen.items():
            inode = inodes.setdefault(numbers[below], Inode())
            inode.note(Moment(begin_ns, done_ns, look))
            self.model.bind(os.path.join(path, below) if below else path, inode, begin_ns, done_ns)

    # --- chance

    def _at(self, path: bytes) -> bytes:
        return os.path.join(self._root, path) if path else self._root

    def _some(self, most: int = 20_000) -> bytes:
        return self._chance.randbytes(self._chance.randrange(1, most))

    def _directories(self) -> list[bytes]:
        return [path for path, inode in self.model.now.items() if stat.S_ISDIR(inode.now.kind)]

    def _a_directory(self) -> bytes:
        return self._chance.choice(self._directories())

    def _a_file(self, *, to_shrink: bool = False) -> bytes:
        """A file, b"" if there is none; not one of the large ones, nor, to be shrunk, one that is mapped."""
        mapped = {inode for _, _, inode in self._mapped} if to_shrink else ()
        files = [
            path
            for path, inode in self.model.now.items()
            if stat.S_ISREG(inode.now.kind) and inode.now.content[0] < _LARGE and inode not in mapped
        ]
        return self._chance.choice(files) if files else b""

    def _new_name(self, directory: bytes) -> bytes:
        """A name that is free, and often one that was used before."""
        while True:
            name = b"%c%d" % (self._chance.randrange(97, 103), self._chance.randrange(40))
            path = os.path.join(directory, name)
            if path not in self.model.now:
                return path


_STEPS: Final = {
    "write_new": 12, "rewrite": 8, "replace": 8, "append": 6, "overwrite": 10, "burst": 6, "truncate": 4,
    "sparse": 3, "large": 1, "chmod": 4, "setxattr": 2, "hold": 2, "append_to_held": 4, "map": 2,
    "store_to_mapped": 4, "rename": 8, "rename_directory": 6, "swap": 2, "link": 5, "symlink": 2, "unlink": 6,
    "remove_tree": 2, "make_tree": 5, "change_kind": 2, "remake": 3, "move_in": 2, "move_out": 1,
}  # fmt: skip


class AtWork:
    """The workload in a thread of its own, for as long as the context lasts: now busy, now resting."""

    def __init__(self, workload: Workload, pause_s: Callable[[random.Random], float]) -> None:
        """`pause_s` tells how long to rest after a step."""
        self._workload = workload
        self._pause_s = pause_s
        self._chance = random.Random(1)
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="workload")

    def _work(self) -> None:
        try:
            while not self._over.wait(self._pause_s(self._chance)):
                self._workload.step()
        except BaseException as error:
            self._failure = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def check(self) -> None:
        """Raise what ended it."""
        if self._failure is not None:
            raise self._failure

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if error is None:
            self.check()


def now_and_then(chance: random.Random) -> float:
    """Mostly at once, sometimes after a while."""
    return 1.5 * chance.random() if chance.random() < 0.005 else chance.choice((0.0, 0.0, 0.0, 0.001, 0.005))
