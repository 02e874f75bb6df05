// Command rclone, cut down to what bench/tiers.py compares with: files, S3, copy and purge. The whole one is three times as large.
package main

import (
	_ "github.com/rclone/rclone/backend/local"
	_ "github.com/rclone/rclone/backend/s3"
	"github.com/rclone/rclone/cmd"
	_ "github.com/rclone/rclone/cmd/copy"
	_ "github.com/rclone/rclone/cmd/purge"
)

func main() { cmd.Main() }
