package proxysuite

import (
	"context"
	"strings"

	"github.com/containerd/containerd/mount"
	"github.com/containerd/containerd/snapshots"
)

// prefixed lets tests that run side by side on one server see only their own snapshots.
type prefixed struct {
	snapshots.Snapshotter
	prefix string
}

func (p *prefixed) in(key string) string {
	if key == "" {
		return ""
	}
	return p.prefix + key
}

func (p *prefixed) out(info snapshots.Info) snapshots.Info {
	info.Name = strings.TrimPrefix(info.Name, p.prefix)
	info.Parent = strings.TrimPrefix(info.Parent, p.prefix)
	return info
}

func (p *prefixed) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	info, err := p.Snapshotter.Stat(ctx, p.in(key))
	return p.out(info), err
}

func (p *prefixed) Update(ctx context.Context, info snapshots.Info, fields ...string) (snapshots.Info, error) {
	info.Name, info.Parent = p.in(info.Name), p.in(info.Parent)
	info, err := p.Snapshotter.Update(ctx, info, fields...)
	return p.out(info), err
}

func (p *prefixed) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	return p.Snapshotter.Usage(ctx, p.in(key))
}

func (p *prefixed) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	return p.Snapshotter.Mounts(ctx, p.in(key))
}

func (p *prefixed) Prepare(ctx context.Context, key, parent string, o ...snapshots.Opt) ([]mount.Mount, error) {
	return p.Snapshotter.Prepare(ctx, p.in(key), p.in(parent), o...)
}

func (p *prefixed) View(ctx context.Context, key, parent string, o ...snapshots.Opt) ([]mount.Mount, error) {
	return p.Snapshotter.View(ctx, p.in(key), p.in(parent), o...)
}

func (p *prefixed) Commit(ctx context.Context, name, key string, o ...snapshots.Opt) error {
	return p.Snapshotter.Commit(ctx, p.in(name), p.in(key), o...)
}

func (p *prefixed) Remove(ctx context.Context, key string) error {
	return p.Snapshotter.Remove(ctx, p.in(key))
}

func (p *prefixed) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	for i := range filters {
		// The suite's filters on names and parents are of the forms name==p and parent==p.
		filters[i] = strings.ReplaceAll(strings.ReplaceAll(filters[i], "name==", "name=="+p.prefix), "parent==", "parent=="+p.prefix)
	}
	return p.Snapshotter.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		if !strings.HasPrefix(info.Name, p.prefix) {
			return nil
		}
		return fn(ctx, p.out(info))
	}, filters...)
}
