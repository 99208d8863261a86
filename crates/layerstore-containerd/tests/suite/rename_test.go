package proxysuite

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/mount"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/containerd/pkg/testutil"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/continuity/fs/fstest"
)

// TestRename renames a directory of a lower layer, which containerd 1.6's suite skips and that of 1.7 and later requires
// of everything but plain overlays.
func TestRename(t *testing.T) {
	testutil.RequiresRoot(t)
	ctx := namespaces.WithNamespace(context.Background(), "rename")
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	must(t, os.Mkdir(root, 0777))
	sn, stop, err := newSnapshotter(ctx, root)
	must(t, err)
	defer stop()

	base := []fstest.Applier{
		fstest.CreateDir("/dir1", 0700),
		fstest.CreateFile("/dir1/inside", []byte("stays"), 0640),
		fstest.CreateDir("/files", 0700),
		fstest.CreateFile("/files/f1", []byte("was first"), 0644),
		fstest.CreateFile("/files/f2", []byte("something"), 0644),
	}
	change := []fstest.Applier{
		fstest.Rename("/dir1", "/dir2"),
		fstest.CreateFile("/files/new", []byte("new content"), 0644),
		fstest.Rename("/files/new", "/files/f1"),
		fstest.Rename("/files/f2", "/files/f3"),
	}
	again := []fstest.Applier{
		fstest.Rename("/dir2", "/dir3"),
		fstest.CreateFile("/dir3/more", []byte("more"), 0600),
	}
	parent := ""
	var all []fstest.Applier
	for i, step := range [][]fstest.Applier{base, change, again} {
		name, key := string(rune('a'+i)), "key "+string(rune('a'+i))
		mounts, err := sn.Prepare(ctx, key, parent)
		must(t, err)
		at := filepath.Join(dir, name)
		must(t, os.Mkdir(at, 0755))
		must(t, mount.All(mounts, at))
		must(t, fstest.Apply(step...).Apply(at))
		testutil.Unmount(t, at)
		must(t, sn.Commit(ctx, name, key))
		parent = name
		all = append(all, step...)
		check(ctx, t, sn, name, filepath.Join(dir, "view"+name), all)
	}
}

func check(ctx context.Context, t *testing.T, sn snapshots.Snapshotter, name, at string, all []fstest.Applier) {
	mounts, err := sn.View(ctx, "view "+name, name)
	must(t, err)
	must(t, os.Mkdir(at, 0755))
	must(t, mount.All(mounts, at))
	defer testutil.Unmount(t, at)
	must(t, fstest.CheckDirectoryEqualWithApplier(at, fstest.Apply(all...)))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
