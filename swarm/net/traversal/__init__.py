"""Ways to a node behind NATs and firewalls: hole punching, relays, port mapping, the door for HTTP.

The face is `reach.Reach`: it races the single ways of `connect_methods` and upgrades to a better one later; `inbound`
answers such tries, `rendezvous` and `relay` are the services that members give each other.
"""
