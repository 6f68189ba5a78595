def ray_predict(): pass
