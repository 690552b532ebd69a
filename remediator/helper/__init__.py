"""The helper: the few calls that need root, by fixed verbs over a Unix socket, for one user.

It runs as root, decides for itself what it may do (`helper.yml`, which belongs to root), and loads
as little as it can. The remediator, which takes alerts from the network, runs without privileges.
"""
