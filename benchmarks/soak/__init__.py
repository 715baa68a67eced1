"""Mixed and hostile load on a real server for a long time: what grows?"""
